"""Changes to graphs beside the paper's, which tests/graph/test_graph.py has."""

import random

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.search.mutation import MOVES, NODES, mutate, random_graph

B0, S0 = KNOWN["EvoNormB0"], KNOWN["EvoNormS0"]


def children(graph, move, other=None, count=400):
    rng = random.Random(0)
    return [mutate(graph, rng, moves=(move,), other=other) for _ in range(count)]


@pytest.mark.parametrize("move", MOVES)
def test_children_are_graphs(move):
    """Of the search's size where there is room to be, whatever their parents."""
    rng = random.Random(0)
    for k in range(300):
        parent, other = random_graph(rng, "S"), random_graph(rng, "S")
        child = mutate(parent, rng, "S", 1 + k % 3, (move,), other)
        assert Graph(child.nodes) == child
        assert len(child.nodes) == NODES
        child.check_space("S")


def test_a_live_node_changes():
    parent = random_graph(random.Random(5))
    assert len(parent.live()) < NODES
    changed = [
        k
        for child in children(parent, "live")
        for k, (a, b) in enumerate(zip(child.nodes, parent.nodes, strict=True), 4)
        if a != b
    ]
    assert set(changed) == set(parent.live())
    assert len(changed) <= 400


def test_an_insertion_keeps_what_was_there():
    """tanh(x) becomes tanh(op(x)), or tanh of x and something else."""
    found = [child.pruned() for child in children(parse("tanh(x)"), "insert")]
    assert {len(g.nodes) for g in found} == {2}
    assert {g.nodes[-1][0] for g in found} == {"tanh"}
    texts = {str(g) for g in found}
    assert {"tanh(exp(x))", "tanh(-x)", "tanh(std_{w,h}(x))"} <= texts
    assert "tanh(x)" in texts  # max(x, x)


def test_a_removal_leaves_one_of_the_inputs():
    texts = {str(child) for child in children(S0, "remove")}
    assert texts == {
        "x * sigmoid(v1 * x)",
        "std_{w,h,c/g}(x)",
        "x / std_{w,h,c/g}(x)",
        "sigmoid(v1 * x) / std_{w,h,c/g}(x)",
        "x * (v1 * x) / std_{w,h,c/g}(x)",
        "x * sigmoid(v1) / std_{w,h,c/g}(x)",
        "x * sigmoid(x) / std_{w,h,c/g}(x)",
        "x * sigmoid(v1 * x) / x",
    }


def test_a_removal_that_leaves_nothing_is_a_change():
    for child in children(parse("tanh(x)"), "remove", count=50):
        assert child.live()


def test_a_crossover_of_two_layers():
    texts = {str(child) for child in children(B0, "crossover", S0, 2000)}
    assert str(S0) in texts
    assert "x / max(std_{b,w,h}(x), x * sigmoid(v1 * x))" in texts
    assert "x / max(std_{b,w,h}(x), v1 * x + std_{w,h,c/g}(x))" in texts
    # What is used twice is replaced twice, and found once.
    assert "x / max(z, v1 * x + z), z = std_{w,h,c/g}(x)" not in texts


def test_what_does_not_fit_is_a_change_of_a_live_node():
    parent = parse("exp(" * NODES + "x" + ")" * NODES)
    for child in children(parent, "insert", count=100):
        assert sum(a != b for a, b in zip(child.nodes, parent.nodes, strict=True)) <= 1
