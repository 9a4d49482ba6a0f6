"""One candidate through the filters and the trainings."""

import dataclasses
import json
import math
import random

import pytest
import torch

from evonorm_plugins.errors import ConfigError, DataError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN, REJECTED
from evonorm_plugins.search import evaluate as module
from evonorm_plugins.search import filters
from evonorm_plugins.search.config import task_from_dict
from evonorm_plugins.search.evaluate import Evaluation, evaluate
from evonorm_plugins.search.mutation import random_graph
from evonorm_plugins.search.trainer import Training

S0, B0 = KNOWN["EvoNormS0"], KNOWN["EvoNormB0"]
ANCHORS = ["resnet50_cifar", "mobilenetv2_cifar"]


def outcome(found):
    """All but the times."""
    return {k: v for k, v in dataclasses.asdict(found).items() if "seconds" not in k}


@pytest.fixture
def calls(monkeypatch):
    """Names of what is called, in order; filters pass unless ``calls.refusing`` names them."""

    class Calls(list):
        refusing = ()

    calls = Calls()

    def noted(name, result, refused):
        def call(*_):
            calls.append(name)
            return refused if name in calls.refusing else result

        return call

    class Noted:
        def __init__(self, graph, task, anchor):
            calls.append(anchor)
            self.failed_at = None

        def go_on(self, until):
            return True

        def accuracy(self):
            return 0.5

    for name in ("propagation", "rungs"):
        monkeypatch.setattr(filters, name, noted(name, (True, {}), (False, {})))
    monkeypatch.setattr(filters, "ascent", noted("ascent", (True, [1.0]), (False, [9.0])))
    monkeypatch.setattr(filters, "trial", noted("trial", None, "constant"))
    monkeypatch.setattr(filters, "quality", noted("quality", (True, {}), (False, {})))
    monkeypatch.setattr(filters, "stability", noted("stability", (True, [1.0]), (False, [9.0])))
    monkeypatch.setattr(module, "Training", Noted)
    return calls


def test_a_candidate_that_passes(options):
    stages = []
    found = evaluate(S0, task_from_dict(options()), progress=stages.append)
    assert found.filter is None
    assert list(found.scores) == list(found.details["quality"]) == ANCHORS
    assert all(0 <= a <= 1 for a in found.scores.values())
    assert 0 < found.details["gradient_norm"] < 1e8
    assert found.details["ascent_steps"] == 2
    assert "not_finite" not in found.details
    assert list(found.seconds) == ["trial", "stability", "quality", "training"]
    assert list(found.cpu_seconds) == list(found.seconds)
    assert min([*found.seconds.values(), *found.cpu_seconds.values()]) > 0
    assert stages == ["trial", "stability", "quality", *(f"training {a}" for a in ANCHORS)]
    assert Evaluation(**json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_scores_are_those_of_uninterrupted_trainings(options):
    anchors = ["resnet50_cifar"]
    task = task_from_dict(options(steps=5, quality_steps=3, anchors=anchors, filters=["quality"]))
    found = evaluate(B0, task)
    for anchor in anchors:
        training = Training(B0, task, anchor)
        training.go_on(5)
        assert found.scores[anchor] == training.accuracy()


def test_the_same_every_time(options):
    """For all graphs with the same digest, whatever torch's random numbers."""
    values = {"anchors": ["resnet50_cifar"], "steps": 3, "quality_steps": 1, "stability_steps": 1}
    task = task_from_dict(options(**values))
    same = Graph([("exp", 0), *((op, *(i + (i > 3) for i in inputs)) for op, *inputs in B0.nodes)])
    assert same.digest() == B0.digest()
    results = []
    for seed, graph in ((0, B0), (1, same)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(outcome(evaluate(graph, task)))
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0] == results[1]
    other = outcome(evaluate(B0, task_from_dict(options(seed=1, **values))))
    assert other["details"]["gradient_norm"] != results[0]["details"]["gradient_norm"]


@pytest.mark.parametrize(
    ("filters", "refusing", "called", "result"),
    [
        (["trial", "quality", "stability"], [], ["trial", "quality", "stability"], None),
        (["stability", "trial"], [], ["stability", "trial"], None),
        ([], ["trial", "quality", "stability"], [], None),
        (["quality"], ["trial", "stability"], ["quality"], None),
        (["trial", "quality", "stability"], ["trial"], ["trial"], "constant"),
        (["trial", "quality", "stability"], ["quality"], ["trial", "quality"], "quality"),
        (["stability", "quality"], ["stability", "quality"], ["stability"], "stability"),
        (["propagation", "ascent"], ["ascent"], ["propagation", "ascent"], "ascent"),
        (["propagation", "rungs"], ["propagation"], ["propagation"], "propagation"),
        (["rungs", "quality"], ["rungs"], ["rungs"], "rungs"),
    ],
)
def test_order_and_early_end(options, calls, filters, refusing, called, result):
    calls.refusing = refusing
    found = evaluate(S0, task_from_dict(options(filters=filters, rungs=[1])))
    assert found.filter == result
    assert calls == called + ([] if result else ANCHORS)
    assert found.scores == ({} if result else dict.fromkeys(ANCHORS, 0.5))
    assert list(found.seconds) == called + ([] if result else ["training"])


def test_all_filters_are_asked_where_that_is_wanted(options, calls):
    calls.refusing = ["ascent", "quality"]
    order = ["trial", "ascent", "quality", "stability"]
    found = evaluate(S0, task_from_dict(options(filters=order)), ask_all=True)
    assert (found.filter, found.details["refused"]) == ("ascent", ["ascent", "quality"])
    assert calls == [*order, *ANCHORS]
    assert found.scores == dict.fromkeys(ANCHORS, 0.5)
    calls.clear()
    calls.refusing = ["trial"]  # what is constant is not worth asking about
    found = evaluate(S0, task_from_dict(options(filters=order)), ask_all=True)
    assert (found.details["refused"], found.scores, calls) == (["constant"], {}, ["trial"])


def test_bars(options):
    """Trainings that go on from the rungs are those without."""
    values = {"anchors": ["resnet50_cifar"], "steps": 4, "quality_steps": 3}
    task = task_from_dict(options(filters=["rungs", "quality", "top"], rungs=[1, 2], **values))
    free = evaluate(S0, task)
    plain = evaluate(S0, task_from_dict(options(filters=["quality"], **values)))
    assert (free.filter, free.scores) == (None, plain.scores)
    assert list(free.details["rungs"]) == ["1", "2"]
    assert free.details["quality"] == plain.details["quality"]
    assert free.details["top"] == free.details["quality"]["resnet50_cifar"]
    above = free.details["top"] + 0.01
    found = evaluate(S0, task, bars={"top": above})
    assert (found.filter, found.scores) == ("top", {})
    found = evaluate(S0, task, bars={"2": {"resnet50_cifar": 1.1}})
    assert (found.filter, list(found.seconds)) == ("rungs", ["rungs"])
    assert evaluate(S0, task, bars={"top": free.details["top"]}).scores == plain.scores


def test_refused_by_quality(options):
    """A training that fails early trains no other anchor, and nothing more."""
    found = evaluate(S0, task_from_dict(options(quality_accuracy=1)))
    assert found.filter == "quality"
    assert list(found.details) == ["gradient_norm", "ascent_steps", "quality"]
    assert list(found.details["quality"]) == ["resnet50_cifar"]
    assert found.scores == {}


def test_refused_by_the_others(options):
    assert evaluate(REJECTED["zero"], task_from_dict(options())).filter == "constant"
    task = task_from_dict(options(filters=["stability", "quality"], stability_steps=9))
    found = evaluate(REJECTED["unstable"], task)
    assert found.filter == "stability"
    assert found.details["gradient_norm"] > 1e8
    assert found.details["ascent_steps"] < 9
    assert "quality" not in found.details


def test_loss_that_is_not_finite(options):
    """It refuses a candidate, in the quality filter or later; without filters it is guessing."""
    values = {"lr": 1e30, "steps": 6, "anchors": ["mobilenetv2_cifar"]}
    found = evaluate(S0, task_from_dict(options(filters=[], **values)))
    assert found.filter is None
    assert found.scores == pytest.approx({"mobilenetv2_cifar": 1 / 3})
    failed_at = found.details["not_finite"]["mobilenetv2_cifar"]
    assert 2 <= failed_at <= 6

    early = task_from_dict(options(filters=["quality"], **values, quality_steps=6))
    found = evaluate(S0, early)
    assert (found.filter, found.scores) == ("quality", {})
    assert found.details == {
        "quality": {"mobilenetv2_cifar": pytest.approx(1 / 3)},
        "not_finite": {"mobilenetv2_cifar": failed_at},
    }
    late = task_from_dict(options(filters=["quality"], **values, quality_steps=failed_at - 1))
    found = evaluate(S0, late)
    assert (found.filter, found.scores) == ("training", {})
    assert found.details["not_finite"] == {"mobilenetv2_cifar": failed_at}


def test_random_graphs_raise_nothing(options):
    """Whatever they compute: without filters, as random search runs them."""
    rng = random.Random(0)
    task = task_from_dict(options(filters=["stability"], steps=1, anchors=["resnet50_cifar"]))
    for _ in range(8):
        found = evaluate(random_graph(rng), task)
        assert found.filter in (None, "stability", "training")
        assert not math.isnan(found.details["gradient_norm"])


def test_bad_data_is_said_first(options, calls):
    for values, error in (({"data": "none.zip"}, DataError), ({"device": "tpu"}, ConfigError)):
        with pytest.raises(error, match=next(iter(values.values()))):
            evaluate(S0, task_from_dict(options(**values)))
    assert calls == []


def test_mistakes_are_raised(options, monkeypatch):
    def broken(*_):
        raise TypeError("a mistake")

    monkeypatch.setattr(filters, "stability", broken)
    with pytest.raises(TypeError, match="a mistake"):
        evaluate(S0, task_from_dict(options(filters=["stability"])))
