"""Candidates with known scores and costs."""

import random
import statistics
from collections import Counter

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search import simulated
from evonorm_plugins.search.config import load_config
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


def test_bars_refuse_what_is_below_them():
    rng = random.Random(0)
    graphs = (random_graph(rng) for _ in range(100))
    graph = next(g for g in graphs if simulate(g, 60.0).filter is None)
    free = simulate(graph, 60.0, {})
    assert free.filter is None
    assert list(free.seconds) == ["trial", "rungs", "quality", "training"]
    plain = simulate(graph, 60.0)
    assert free.scores == plain.scores
    assert sum(free.seconds.values()) == pytest.approx(sum(plain.seconds.values()))
    for rung, share in (("25", 0.25), ("50", 0.5)):
        own = free.details["rungs"][rung]
        assert simulate(graph, 60.0, {rung: own}).filter is None
        found = simulate(graph, 60.0, {rung: {**own, "second": own["second"] + 1e-6}})
        assert (found.filter, found.scores) == ("rungs", {})
        assert found.seconds["rungs"] == pytest.approx(share * plain.seconds["quality"])
    mean = free.details["top"]
    assert simulate(graph, 60.0, {"top": mean}).filter is None
    found = simulate(graph, 60.0, {"top": mean + 1e-6})
    assert (found.filter, list(found.seconds)) == ("top", ["trial", "rungs", "quality"])


def test_quick_is_what_the_config_says():
    config = load_config("quick", ["data=none.zip", "candidates=1"])
    assert {"same": config.same, "redraws": config.redraws} == simulated.QUICK_DRIVER
    evolution = {"moves": tuple(config.moves), "winner": config.winner}
    assert evolution == simulated.QUICK_EVOLUTION
    bars = config.rung_share, config.top_share, config.least_results
    assert bars == simulated.QUICK_BARS
