"""Random graphs and random changes to them (paper, Sections 3.1 and 4.3). Needs no torch."""

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import INITIAL, OPERATIONS, operations_of

# Operations of a graph of the search; with the initial nodes 14 in all.
NODES = 10
_FIRST = len(INITIAL)


def random_graph(rng, space="B", nodes=NODES):
    """A graph of ``nodes`` operations, each drawn uniformly with uniformly drawn predecessors.

    Args:
        rng: a ``random.Random``; the same state gives the same graph.
        space: "B", or "S" without aggregations over the batch.

    The predecessors of a node are drawn independently: both may be the same.

    Raises:
        ValueError: there is no such space.
    """
    operations, draw = operations_of(space), rng.random
    return Graph.unchecked(
        tuple(_random_node(k, operations, draw) for k in range(_FIRST, _FIRST + nodes))
    )


# What a mutation can be: of any node as in the paper, of a live one, and beside the paper.
MOVES = ("node", "live", "insert", "remove", "crossover")


def mutate(graph, rng, space="B", times=1, moves=("node",), other=None):
    """A graph with ``times`` random changes, one after the other.

    Each is one of ``moves``, drawn uniformly:

    - ``"node"`` takes an operation uniformly at random, replaces it by one drawn uniformly from
      those of the search space (perhaps the same one), and draws its predecessors anew. Dead nodes
      are as likely as others: a change may leave the layer what it was.
    - ``"live"`` does this with a node that reaches the output.
    - ``"insert"`` puts a new operation between a live node and one of its inputs.
    - ``"remove"`` takes a live node out: what used it uses one of its inputs.
    - ``"crossover"`` puts a part of ``other``, a random live node and all before it, in the place
      of a random live node.

    A change of the last three that cannot be, as there would be more than :data:`NODES` live nodes
    or none, is one of ``"live"``. They leave their graph with :data:`NODES` nodes, new random ones
    in the place of dead ones.

    Args:
        rng, space: as for :func:`random_graph`.
        other: for ``"crossover"``, a graph.

    Raises:
        ValueError: there is no such space.
    """
    operations, draw = operations_of(space), rng.random
    nodes = graph.nodes
    for _ in range(times):
        move = moves[int(draw() * len(moves))] if len(moves) > 1 else moves[0]
        nodes = _moved(nodes, move, operations, draw, other)
    return Graph.unchecked(nodes)


def padded(graph, rng, space="B"):
    """A graph of :data:`NODES` operations that computes the same: random dead ones are in front.

    Args:
        graph: with at most so many live nodes.
        rng, space: as for :func:`random_graph`.
    """
    return Graph.unchecked(_padded(graph.pruned().nodes, operations_of(space), rng.random))


def _moved(nodes, move, operations, draw, other):
    if move in ("insert", "remove", "crossover"):
        live = Graph.unchecked(nodes).pruned().nodes
        k = _FIRST + int(draw() * len(live))
        if move == "insert":
            changed = _insert(live, k, operations, draw)
        elif move == "remove":
            changed = _replace(
                live, k, (), live[k - _FIRST][1 + int(draw() * (len(live[k - _FIRST]) - 1))]
            )
        else:
            parts = other.pruned().nodes
            part = Graph.unchecked(parts[: 1 + int(draw() * len(parts))]).pruned().nodes
            changed = _replace(live, k, part, None)
        changed = Graph.unchecked(changed).pruned().nodes if changed else ()
        if 0 < len(changed) <= NODES:
            return _padded(changed, operations, draw)
        move = "live"
    if move == "live":
        live = Graph.unchecked(nodes).live()
        k = live[int(draw() * len(live))]
    else:
        k = _FIRST + int(draw() * len(nodes))
    return (*nodes[: k - _FIRST], _random_node(k, operations, draw), *nodes[k - _FIRST + 1 :])


def _insert(nodes, k, operations, draw):
    """Nodes with a new number k before what was k, one of whose inputs it takes over."""
    op, *inputs = nodes[k - _FIRST]
    place = int(draw() * len(inputs))
    new = list(_random_node(k, operations, draw))
    new[1 + int(draw() * (len(new) - 1))] = inputs[place]
    inputs[place] = k
    after = _renumbered(nodes[k - _FIRST + 1 :], lambda i: i + (i >= k))
    return (*nodes[: k - _FIRST], tuple(new), (op, *inputs), *after)


def _replace(nodes, k, part, by):
    """Nodes without number k; in its place those of ``part``, a graph's, or the node ``by``.

    None where nothing but an initial node is left.
    """
    before, after = nodes[: k - _FIRST], nodes[k - _FIRST + 1 :]
    shift = len(before)
    part = _renumbered(part, lambda i: i + shift * (i >= _FIRST))
    by = _FIRST + shift + len(part) - 1 if part else by
    if not after:
        return (*before, *part)[: by - _FIRST + 1] or None
    grown = len(part) - 1
    after = _renumbered(after, lambda i: by if i == k else i + grown * (i > k))
    return (*before, *part, *after)


def _padded(nodes, operations, draw):
    """With random dead nodes in front, which later changes can take as inputs."""
    missing = NODES - len(nodes)
    dead = tuple(_random_node(_FIRST + k, operations, draw) for k in range(missing))
    return (*dead, *_renumbered(nodes, lambda i: i + missing * (i >= _FIRST)))


def _renumbered(nodes, number):
    return tuple((op, *map(number, inputs)) for op, *inputs in nodes)


def _random_node(k, operations, draw):
    op = operations[int(draw() * len(operations))]
    if OPERATIONS[op] == 1:
        return op, int(draw() * k)
    return op, int(draw() * k), int(draw() * k)
