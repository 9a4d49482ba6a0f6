"""What filters cost and refuse, on a sample: by hand, and the command on a tiny task."""

import json

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.search.config import from_dict
from evonorm_plugins.search.filters import trial
from evonorm_plugins.search.measure import numbers, sample, text
from evonorm_plugins.search.store import Candidate

ORDER = ["trial", "propagation", "rungs", "quality", "top", "stability"]
# Score, what refuses it, accuracies at the rung and after the quality filter.
SAMPLE = [
    (0.9, [], 0.5, 0.6),
    (0.8, [], 0.3, 0.5),
    (0.7, ["propagation"], 0.5, 0.6),
    (0.6, [], 0.6, 0.4),
    (None, ["stability"], 0.5, 0.5),
    (0.4, ["propagation", "quality"], 0.1, 0.1),
    (0.3, ["quality"], 0.2, 0.1),
]


@pytest.fixture
def config():
    rungs = {"rungs": [25], "rung_share": 0.6, "top_share": 0.5}
    return from_dict({"data": "x", "candidates": 5, "filters": ORDER, **rungs})


def candidates():
    seconds = {"propagation": 0.1, "rungs": 1.0, "quality": 2.0, "stability": 4.0, "training": 9.0}
    for number, (score, refused, rung, quality) in enumerate(SAMPLE):
        details = {"refused": refused, "rungs": {"25": {"a": rung}}, "top": quality}
        scores = {} if score is None else {"a": score}
        graph = Graph([("exp", 0)] * (number + 1))
        yield Candidate(number, graph, scores=scores, details=details, seconds=seconds)


def test_numbers_by_hand(config):
    found = numbers(list(candidates()), config)
    # Good are 0 to 3, the best of them 0.
    assert (found["candidates"], found["good"], found["best"]) == (7, 4, 1)
    rows = {row["filter"]: row for row in found["filters"]}
    assert {name: (row["come"], row["refused"]) for name, row in rows.items()} == {
        "trial": (7, 0),
        "propagation": (7, 2),
        "rungs": (5, 2),  # the best 3 of 0.5, 0.3, 0.6, 0.5, 0.2 have at least 0.5
        "quality": (3, 0),
        "top": (3, 1),  # the best 2 of 0.6, 0.4, 0.5
        "stability": (2, 1),
    }
    assert {name: row["good_refused"] for name, row in rows.items() if row["good_refused"]} == {
        "propagation": 0.25,
        "rungs": 0.25,
        "top": 0.25,
    }
    assert (found["trained"], found["good_lost"], found["best_lost"]) == (1, 0.75, 0.0)
    assert rows["rungs"]["seconds"] == 1
    assert found["seconds"] == pytest.approx(7 * 0.1 + 5 * 1 + 3 * 2 + 3 * 0 + 2 * 4 + 9)
    # Stability of all, rungs and quality of the six that are stable, four trainings.
    assert found["paper_seconds"] == pytest.approx(7 * 4 + 6 * 3 + 4 * 9)
    lines = text(found).splitlines()
    assert lines[0].startswith("7 candidates that pass the trial, of 7; 4 are good")
    assert lines[3].split() == ["propagation", "7", "2", "0.100", "25.0%", "0.0%"]
    assert lines[-2] == "1 are trained; lost: 75.0% of the good, 0.0% of the best"


def test_bars_are_those_of_what_is_drawn(config):
    """The paper's layers, first in the sample, are compared with the others."""
    shifted = [*candidates()]
    for c in shifted[1:]:
        c.number += 100
    found = numbers(shifted, config)
    rows = {row["filter"]: row for row in found["filters"]}
    # Of 0.3, 0.6, 0.5, 0.2, the four that are drawn, the best 3; of 0.5, 0.4, 0.5 the best 2.
    assert [rows[name]["refused"] for name in ("rungs", "top")] == [1, 1]


def test_nothing_good(config):
    found = numbers([c for c in candidates() if c.number > 3], config)
    assert (found["good"], found["good_lost"], found["best_lost"]) == (0, 0, 0)


@pytest.mark.parametrize("space", ["B", "S"])
def test_the_sample(space):
    """The paper's layers first, then what passes the trial; the same every time."""
    config = from_dict({"data": "x", "candidates": 5, "space": space})
    graphs = [sample(config, number)[0] for number in range(24)]
    assert graphs == [sample(config, number)[0] for number in range(24)]
    digests = {g.digest() for g in graphs}
    assert KNOWN["EvoNormS0"].digest() in digests
    assert (KNOWN["EvoNormB0"].digest() in digests) is (space == "B")
    for graph in graphs:
        graph.check_space(space)
        assert trial(graph) is None
    assert sample(config, 23)[1] > 1


def test_the_command(options, tmp_path, search):
    path, store = tmp_path / "search.yaml", tmp_path / "sample.sqlite"
    values = {"anchors": ["mobilenetv2_cifar"], "rungs": [1], "filters": [*ORDER, "ascent"]}
    values |= {"quality_accuracy": 1, "steps": 3, "stability_steps": 1, "ascent_steps": 0}
    path.write_text(json.dumps(options(**values)))
    command = ["filters", "--config", path, f"store={store}"]
    status, out, err = search(*command, "candidates=1", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert [row["filter"] for row in found["filters"]] == [*ORDER, "ascent"]
    assert found["paper_seconds"] > 0
    status, out, err = search(*command, "candidates=2")  # goes on
    assert status == 0, err
    # The second is put to all filters, too, though quality refuses it.
    assert err.count("candidate ") == 2
    assert out.startswith("2 candidates that pass the trial, of 2; 0 are good")
    status, out, _ = search("show", store, "1", "--json")
    details = json.loads(out)["details"]
    assert details["refused"] == ["quality"]
    assert {"propagation", "rungs", "quality", "top", "gradient_norm"} <= set(details)
    assert json.loads(out)["scores"]
    # No search goes on with it.
    status, _, err = search("run", "--config", path, f"store={store}", "candidates=3", "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert f"store={store} holds no search: name another one" in err
    status, _, err = search(*command, "candidates=2", "hours=1", "rung_share=0.1")
    assert (status, err.count("\n")) == (2, 1)
    assert "was begun with rung_share=0.8 (now 0.1)" in err
    assert search("filters", "--config", path, "hours=1")[0] == 2
