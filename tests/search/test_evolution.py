"""Which candidates are proposed: the window, tournaments, Pareto fronts, reproducibility."""

import random
from collections import Counter

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.mutation import random_graph
from evonorm_plugins.search.pareto import pareto_front

PARENT = random_graph(random.Random(1))


def filled(*scores, **options):
    """An evolution with candidates 0, 1, ... of these scores, all of the same graph."""
    evolution = Evolution(**options)
    for number, score in enumerate(scores):
        evolution.add(number, PARENT, score)
    return evolution


def parents(evolution, proposals=300):
    return Counter(evolution.propose(n)[1] for n in range(proposals))


def test_the_front_by_hand():
    points = [(1, 5), (2, 4), (2, 3), (5, 1), (1, 5), (0, 0), (4, 1)]
    assert pareto_front(points, key=lambda p: p) == [(1, 5), (2, 4), (5, 1), (1, 5)]


def test_the_front_of_many_by_comparing_all():
    rng = random.Random(0)
    points = [tuple(rng.randrange(8) for _ in range(3)) for _ in range(120)]

    def beaten(p):
        return any(q != p and all(a >= b for a, b in zip(q, p, strict=True)) for q in points)

    assert pareto_front(points, key=lambda p: p) == [p for p in points if not beaten(p)]


def test_without_candidates_graphs_are_random():
    evolution = Evolution(random_share=0)
    graph, parent = evolution.propose(0)
    assert parent is None
    assert len(graph.nodes) == 10


def test_proposals_depend_on_seed_number_and_attempt_alone():
    evolution, again = filled((0.5,), seed=3), filled((0.5,), seed=3)
    assert [evolution.propose(n) for n in (5, 2)] == [again.propose(5), again.propose(2)]
    assert evolution.propose(5) != filled((0.5,), seed=4).propose(5)
    assert evolution.propose(5) != evolution.propose(5, attempt=1)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 150), (1.0, 300)])
def test_share_of_random_graphs(share, expected):
    assert parents(filled((0.5,), random_share=share))[None] == pytest.approx(expected, abs=30)


def test_children_differ_from_their_parent_in_two_nodes_at_most():
    evolution = filled((0.5,), random_share=0)
    changed = Counter()
    for n in range(200):
        graph, parent = evolution.propose(n)
        assert parent == 0
        changed[sum(a != b for a, b in zip(graph.nodes, PARENT.nodes, strict=True))] += 1
    assert set(changed) <= {0, 1, 2}
    assert changed[2] > 120


def test_the_winner_of_a_tournament_of_all():
    scores = [(0.9, 0.1), (0.5, 0.6), (0.4, 0.5), (0.6, 0.3)]
    found = parents(filled(*scores, tournament=1, random_share=0))
    assert set(found) == {0, 1, 3}
    assert min(found.values()) > 60
    found = parents(filled(*scores, tournament=1, random_share=0, winner="average"))
    assert set(found) == {1}


def test_the_front_of_the_whole_window():
    scores = [(k / 30, 0.5 - k / 30) for k in range(3)] + [(0.0, 0.1)] * 30
    assert set(parents(filled(*scores, winner="front", random_share=0))) == {0, 1, 2}


def test_a_crossover_takes_parts_of_another_parent():
    evolution = Evolution(moves=["crossover"], random_share=0, tournament=1, mutations=1, seed=1)
    evolution.add(0, Graph.of(("tanh", ("exp", "x"))), (0.1, 0.9))
    evolution.add(1, Graph.of(("sigmoid", ("log", "v1"))), (0.9, 0.1))
    children = {str(evolution.propose(n)[0]) for n in range(300)}
    assert "tanh(sigmoid(log(v1)))" in children
    assert "sigmoid(exp(x))" in children


def test_a_tournament_takes_a_share_of_the_window():
    # 5% of 20 is one: any candidate can win; of all 20 only the best can.
    scores = [(k,) for k in range(20)]
    assert len(parents(filled(*scores, random_share=0))) == 20
    assert set(parents(filled(*scores, tournament=1, random_share=0))) == {19}


def test_only_the_most_recent_are_parents():
    evolution = filled((9,), (1,), (2,), (3,), window=3, tournament=1, random_share=0)
    assert set(parents(evolution)) == {3}
    assert [number for number, *_ in evolution.window] == [1, 2, 3]


def test_space_s_has_no_batch_statistics():
    evolution = Evolution("S", random_share=0.5)
    evolution.add(0, Graph.of(("tanh", ("tanh", ("tanh", "x")))), (0.5,))
    for n in range(200):
        evolution.propose(n)[0].check_space("S")
