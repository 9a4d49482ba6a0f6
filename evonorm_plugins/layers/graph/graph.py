"""A candidate layer as a graph of primitives: the genotype of the search. Needs no torch.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Section 3.1. Nodes 0 to 3 are x, zero, v0 and v1; every further node is an operation on nodes before
it, and the last one is the output. A graph of the search has 10 further nodes, 14 in all; any
number makes a layer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from evonorm_plugins.errors import GraphError, shown
from evonorm_plugins.files import replacing
from evonorm_plugins.layers.graph import structure
from evonorm_plugins.layers.graph.operations import INDEX_SETS, INITIAL, OPERATIONS, operations_of

# More than any search makes; a file with more is not one of ours.
MAX_NODES = 100

_FORMAT = "evonorm_plugins layer graph"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Graph:
    """An immutable layer graph; equal and hashed by its nodes as they are.

    Args:
        nodes: the nodes from number 4 on, each ``(operation, input)`` or ``(operation, input,
            input)``: a name of :data:`operations.OPERATIONS` and numbers of nodes before it.

    Graphs that compute the same by their structure have the same :meth:`digest`.

    Raises:
        GraphError: unknown operation, wrong number of inputs, an input that is not before its node.
    """

    nodes: tuple

    def __post_init__(self):
        object.__setattr__(self, "nodes", _checked(self.nodes))

    @classmethod
    def unchecked(cls, nodes):
        """A graph of a tuple of tuples known to be right, as mutation makes them by the million."""
        graph = object.__new__(cls)
        object.__setattr__(graph, "nodes", nodes)
        return graph

    @classmethod
    def of(cls, expression):
        """A graph of nested tuples: ``("div", "x", ("std_{w,h}", "x"))``. Equal parts are shared.

        Raises:
            GraphError: as for the class, or a name that is not an initial node's.
        """
        nodes, numbers = [], {name: k for k, name in enumerate(INITIAL)}

        def number(part):
            if part not in numbers:
                if not isinstance(part, tuple) or not part:
                    raise GraphError(
                        f"unknown node {shown(part)}; the initial ones are {_initial()}"
                    )
                nodes.append((part[0], *(number(p) for p in part[1:])))
                numbers[part] = len(INITIAL) + len(nodes) - 1
            return numbers[part]

        number(expression)
        return cls(nodes)

    def check_space(self, space):
        """Raise a GraphError where a node that is used does not belong to a search space."""
        allowed = operations_of(space)
        for k in self.live():
            op = self.nodes[k - len(INITIAL)][0]
            if op not in allowed:
                over = [i for i in INDEX_SETS if f"mean_{{{i}}}" in allowed]
                raise GraphError(
                    f"node {k}: {op} is not in search space {space}, whose index sets are "
                    f"({'), ('.join(over)})"
                )

    def live(self):
        """Numbers of the operations that the output depends on, in order; the others are dead."""
        used = {len(INITIAL) + len(self.nodes) - 1}
        for k in range(len(INITIAL) + len(self.nodes) - 1, len(INITIAL) - 1, -1):
            if k in used:
                used.update(self.nodes[k - len(INITIAL)][1:])
        return sorted(k for k in used if k >= len(INITIAL))

    def pruned(self):
        """The graph without its dead nodes."""
        live = self.live()
        number = {k: k for k in range(len(INITIAL))}
        number |= {k: len(INITIAL) + i for i, k in enumerate(live)}
        nodes = (self.nodes[k - len(INITIAL)] for k in live)
        return Graph.unchecked(tuple((op, *(number[i] for i in inputs)) for op, *inputs in nodes))

    def digest(self):
        """32 hexadecimal digits, the same for all graphs that are structurally equal.

        That is: up to dead nodes, the order of nodes, the order of the operands of add, mul and
        max, parts that are written twice, and identities that hold exactly: ``y + 0 = y``,
        ``max(y, y) = y``, ``-(-y) = y``, and the mean of what is constant over its index set. It is
        the same in every process and on every machine.
        """
        return structure.keys_of(self.nodes)[0][-1][2:].hex()

    def canonical(self):
        """The graph that stands for all those with its :meth:`digest`."""
        keys, parts = structure.keys_of(self.nodes)
        nodes, numbers = [], {key: k for k, key in enumerate(structure.INITIAL_KEYS)}
        if keys[-1] in numbers:  # the output is an initial node
            return Graph.unchecked((("add", *sorted((numbers[keys[-1]], 1))),))

        def number(key):
            if key not in numbers:
                op, *inputs = parts[key]
                nodes.append((op, *[number(i) for i in inputs]))
                numbers[key] = len(INITIAL) + len(nodes) - 1
            return numbers[key]

        number(keys[-1])
        return Graph.unchecked(tuple(nodes))

    def depends_on_x(self):
        """Whether the output can depend on x, as far as structure tells.

        It cannot where x is not reached, or only through what is 0 or constant whatever x is: a
        product with zero, a deviation over an index set that its operand does not vary over.
        Raises nothing; True does not say that the output varies, False that it does not.
        """
        return structure.depends_on_x(self.nodes)

    def uses(self, node):
        """Whether the output takes an initial node, given by name, as its input."""
        k = INITIAL.index(node)
        return any(k in self.nodes[i - len(INITIAL)][1:] for i in self.live())

    def __str__(self):
        from evonorm_plugins.layers.graph.formula import text

        return text(self)

    def to_json(self, about=None):
        """The graph as an object for JSON; ``about`` is any such object to keep with it."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "formula": str(self),
            "digest": self.digest(),
            "nodes": [list(node) for node in self.nodes],
            **({} if about is None else {"about": about}),
        }

    @classmethod
    def from_json(cls, value):
        """The graph of what :meth:`to_json` gave.

        Raises:
            GraphError: it is no such object, or its digest is not that of its nodes.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise GraphError(f'not a layer graph: it needs "format": "{_FORMAT}" and "nodes"')
        if value.get("version") != _VERSION:
            raise GraphError(f"version {shown(value.get('version'))} is not {_VERSION}")
        known = {"format", "version", "formula", "digest", "nodes", "about"}
        if unknown := set(value) - known:
            raise GraphError(f"unknown keys {shown(sorted(unknown))}; there are {sorted(known)}")
        if not isinstance(value.get("nodes"), list):
            raise GraphError(f'"nodes" must be a list, got {shown(value.get("nodes"))}')
        graph = cls(value["nodes"])
        if value.get("digest", graph.digest()) != graph.digest():
            raise GraphError(
                f"its digest is {shown(value['digest'])}, that of its nodes {graph.digest()!r}: "
                "the nodes were changed (leave the digest out if that was meant)"
            )
        return graph

    def save(self, path, about=None):
        """Write the graph as a JSON file; see :meth:`to_json`."""
        with replacing(path) as partial:
            rows = {k: v for k, v in self.to_json(about).items() if k != "nodes"}
            text = json.dumps({**rows, "nodes": None}, indent=2)
            nodes = ",\n".join(f"    {json.dumps(list(node))}" for node in self.nodes)
            partial.write_text(text.replace('"nodes": null', f'"nodes": [\n{nodes}\n  ]') + "\n")

    @classmethod
    def load(cls, path):
        """Read a graph that :meth:`save` wrote.

        Raises:
            GraphError: the file cannot be read or holds no graph; names the file and what is wrong.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except GraphError as error:
            raise GraphError(f"the layer graph {path}: {error}") from None
        except (OSError, ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            reason = (
                "it is nested too deeply" if deep else getattr(error, "strerror", None) or error
            )
            raise GraphError(f"cannot read the layer graph {path}: {reason}") from None


def _initial():
    return ", ".join(f"{k} {name}" for k, name in enumerate(INITIAL))


def _checked(nodes):
    if not isinstance(nodes, list | tuple) or not 1 <= len(nodes) <= MAX_NODES:
        number = len(nodes) if isinstance(nodes, list | tuple) else shown(nodes)
        raise GraphError(f"a graph has 1 to {MAX_NODES} nodes beside {_initial()}, got {number}")
    return tuple(_checked_node(k, node) for k, node in enumerate(nodes, len(INITIAL)))


def _checked_node(k, node):
    if not isinstance(node, list | tuple) or not node:
        raise GraphError(f"node {k} must be [operation, input, ...], got {shown(node)}")
    op, *inputs = node
    if not isinstance(op, str) or op not in OPERATIONS:
        moment, _, over = str(op).partition("_")
        if f"{moment}_{{{INDEX_SETS[0]}}}" in OPERATIONS:
            known = f"index set {over[:40]}; those of {moment} are {', '.join(INDEX_SETS)}"
            raise GraphError(f"node {k}: {shown(op)} has an unknown {known}")
        raise GraphError(f"node {k}: unknown operation {shown(op)}; known: {', '.join(OPERATIONS)}")
    if len(inputs) != OPERATIONS[op]:
        raise GraphError(f"node {k}: {op} takes {OPERATIONS[op]} inputs, got {len(inputs)}")
    for i in inputs:
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < k:
            cycle = isinstance(i, int) and i >= k
            reason = "does not come before it, which would make a cycle" if cycle else "is no node"
            raise GraphError(
                f"node {k}: input {shown(i)} of {op} {reason}; it can take 0 to {k - 1} "
                f"({_initial()}, the rest operations)"
            )
    return (op, *inputs)
