"""Layer graphs from formulas, as :mod:`evonorm_plugins.layers.graph.formula` prints them; no torch.

``x``, ``0``, ``1``, ``v0``, ``v1``; ``+ - * /``; ``max(a, b)``; functions and aggregations of one
value, ``std_{b,w,h}(x)``; names for what is used several times, ``z * sigmoid(z), z = tanh(x)``.
"""

import ast
import re

from evonorm_plugins.errors import GraphError, shown
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL, OPERATIONS

# Of a formula. What the largest graph is printed as has a few thousand.
MAX_LETTERS = 20_000

_BINARY = {ast.Add: "add", ast.Mult: "mul", ast.Div: "div"}
_INITIAL = [name for name in INITIAL if name != "zero"]
_CALLED = [op for op in OPERATIONS if op not in ("add", "mul", "div", "neg", *AGGREGATIONS)]
# An index set behind a name, and how it is written in a name of Python's.
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z])_\{([^{}]*)\}(?!\w)")
_WRITTEN = re.compile(r"(\w+)__(\d+)_")


def parse(formula):
    """The :class:`Graph` of a formula.

    Raises:
        GraphError: names the part that is no formula and what is known.
    """
    if len(formula) > MAX_LETTERS:
        raise GraphError(f"a formula has at most {MAX_LETTERS} letters, this one {len(formula)}")
    whole, *definitions = re.split(r",\s*(\w+)\s*=(?!=)", formula)
    names = definitions[::2]
    for name in names:
        if name in INITIAL or name in OPERATIONS or names.count(name) > 1:
            raise GraphError(f"{name!r} cannot be given a meaning: it has one")
    trees = dict(zip(names, map(_tree, definitions[1::2]), strict=True))
    try:
        reader = _Reader(trees)
        output = reader.read(_tree(whole))
        if output < len(INITIAL):  # a graph has one operation at least
            reader.nodes.append(("add", output, INITIAL.index("zero")))
        return Graph(reader.nodes)
    except RecursionError:
        raise GraphError(f"the formula of {len(formula)} letters is nested too deeply") from None


def _tree(text):
    sets, text = [], text.strip()
    if "__" in text:  # what an index set is written as, below
        raise GraphError(f"cannot read the formula {shown(text)}: it has two underscores in a row")

    def subscript(match):
        sets.append(match[1].replace(" ", ""))
        return f"__{len(sets) - 1}_"

    try:
        tree = ast.parse(_SUBSCRIPT.sub(subscript, text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply" if _is_depth(error) else error
        raise GraphError(f"cannot read the formula {shown(text)}: {reason}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and (found := _WRITTEN.fullmatch(node.id)):
            node.id = f"{found[1]}_{{{sets[int(found[2])]}}}"
    return tree


def _is_depth(error):
    # What Python calls it depends on its version.
    return isinstance(error, RecursionError | MemoryError) or "too many nested" in str(error)


class _Reader:
    """From Python's syntax trees to the nodes of a graph, equal parts once, the output last.

    Not nested tuples: of names that are used twice by names that are used twice, and so on, they
    would be larger than any memory.
    """

    def __init__(self, trees):
        self.trees, self.found = trees, {}
        self.nodes, self.numbers = [], {}

    def read(self, tree):
        """The number of the node that has a tree's value."""
        match tree:
            case ast.Constant(value=0) if tree.value is not False:
                return INITIAL.index("zero")
            case ast.Constant(value=1) if tree.value is not True:
                return self.node("exp", INITIAL.index("zero"))
            case ast.Name(id=name):
                return self.named(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.node("neg", self.read(operand))
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return self.node("add", self.read(left), self.node("neg", self.read(right)))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self.node(_BINARY[type(op)], self.read(left), self.read(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.called(name, args)
        raise GraphError(
            f"{shown(ast.unparse(tree))} is not part of a formula: it is made of x, v0, v1, 0, 1, "
            f"+ - * / and {', '.join(_CALLED)}"
        )

    def node(self, *node):
        if node not in self.numbers:
            self.nodes.append(node)
            self.numbers[node] = len(INITIAL) + len(self.nodes) - 1
        return self.numbers[node]

    def named(self, name):
        if name in _INITIAL:
            return INITIAL.index(name)
        if name not in self.trees:
            defined = [*_INITIAL, *self.trees]
            raise GraphError(f"unknown name {shown(name)}; there are {', '.join(defined)}, 0 and 1")
        if name not in self.found:
            self.found[name] = None
            self.found[name] = self.read(self.trees[name])
        if self.found[name] is None:
            raise GraphError(f"{name!r} is defined by itself, which would make a cycle")
        return self.found[name]

    def called(self, name, args):
        if name not in _CALLED and name not in AGGREGATIONS:
            raise GraphError(
                f"unknown function {shown(name)}; there are {', '.join([*_CALLED, *AGGREGATIONS])}"
            )
        if len(args) != OPERATIONS[name]:
            raise GraphError(f"{name} takes {OPERATIONS[name]} values, got {len(args)}")
        return self.node(name, *map(self.read, args))
