"""Candidates with known scores and costs."""

import random
import statistics
from collections import Counter

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.mutation import random_graph
from evonorm_plugins.search.simulated import simulate


def test_equal_graphs_have_equal_evaluations():
    tanh, dead = Graph.of(("tanh", "x")), Graph([("exp", 0), ("tanh", 0)])
    assert simulate(tanh, 60.0) == simulate(dead, 60.0)
    assert simulate(tanh, 60.0).scores == simulate(tanh, 1.0).scores


def test_costs_have_the_mean_asked_for():
    rng = random.Random(0)
    found = [simulate(random_graph(rng), 60.0) for _ in range(3000)]
    assert set(Counter(e.filter for e in found)) == {None, "constant", "quality"}
    full = [sum(e.seconds.values()) for e in found if e.filter is None]
    assert statistics.mean(full) == pytest.approx(60, rel=0.1)
    refused = [sum(e.seconds.values()) for e in found if e.filter == "quality"]
    assert statistics.mean(refused) == pytest.approx(3, rel=0.2)


def test_evolution_finds_more_than_random_search():
    def best(random_share):
        evolution, scores = Evolution(random_share=random_share, seed=1), []
        for number in range(1500):
            graph, _ = evolution.propose(number)
            found = simulate(graph, 1.0)
            if found.filter is None:
                evolution.add(number, graph, found.scores.values())
                scores.append(statistics.mean(found.scores.values()))
        return statistics.mean(sorted(scores)[-10:])

    assert best(0.5) > best(1.0) + 0.01
