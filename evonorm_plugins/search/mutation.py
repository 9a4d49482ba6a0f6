"""Random graphs and random changes to them (paper, Sections 3.1 and 4.3). Needs no torch."""

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import INITIAL, OPERATIONS, operations_of

# Operations of a graph of the search; with the initial nodes 14 in all.
NODES = 10


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
    first = len(INITIAL)
    return Graph.unchecked(
        tuple(_random_node(k, operations, draw) for k in range(first, first + nodes))
    )


def mutate(graph, rng, space="B", times=1):
    """A graph with ``times`` random changes, one after the other.

    Each takes an operation uniformly at random, replaces it by one drawn uniformly from those of
    the search space (perhaps the same one), and draws its predecessors anew. Dead nodes are as
    likely as others: a change may leave the layer what it was.

    Args:
        rng, space: as for :func:`random_graph`.

    Raises:
        ValueError: there is no such space.
    """
    operations, draw = operations_of(space), rng.random
    nodes = list(graph.nodes)
    for _ in range(times):
        k = int(draw() * len(nodes))
        nodes[k] = _random_node(k + len(INITIAL), operations, draw)
    return Graph.unchecked(tuple(nodes))


def _random_node(k, operations, draw):
    op = operations[int(draw() * len(operations))]
    if OPERATIONS[op] == 1:
        return op, int(draw() * k)
    return op, int(draw() * k), int(draw() * k)
