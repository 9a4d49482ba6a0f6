"""What refuses a candidate: trial, stability, quality."""

import math
import random

import pytest
import torch
from torch import nn

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN, REJECTED
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.search.config import task_from_dict
from evonorm_plugins.search.filters import (
    ascent,
    gradient_ascent,
    propagation,
    quality,
    rungs,
    stability,
    trial,
)
from evonorm_plugins.search.mutation import random_graph
from evonorm_plugins.search.trainer import Training


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (("mul", "x", ("sigmoid", "x")), None),
        (("sqrt", ("std_{w,h}", "x")), "flat"),
        (("mean_{b,w,h}", "x"), "flat"),
        (("add", ("tanh", "x"), ("mean_{b,w,h}", "x")), None),
        (("exp", "v0"), "constant"),
        (("add", "x", ("neg", "x")), "constant"),
        (("sigmoid", ("mul", ("square", "x"), ("div", "v1", "zero"))), None),
        (("tanh", ("exp", ("exp", ("exp", ("square", "x"))))), "not finite"),
        (("exp", ("exp", ("exp", ("square", "x")))), "not finite"),
        (("max", ("neg", ("exp", "x")), ("mul", ("sigmoid", "x"), "zero")), "constant"),
    ],
)
def test_trial(expression, reason):
    assert trial(Graph.of(expression)) == reason


def test_a_trial_is_the_same_every_time():
    """Whatever the state of torch's generator, which is left as it was."""
    rng = random.Random(0)
    graphs = [random_graph(rng) for _ in range(60)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [trial(g) for g in graphs]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert [trial(g) for g in graphs] == first
    assert {None, "constant", "flat"} <= set(first)


def test_ascent_by_hand():
    """Of w^3 / 3, whose gradient is w^2: w goes up by 0.1 x 2w."""
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    norms = gradient_ascent(lambda: (w**3 / 3).sum(), [w], steps=3, lr=0.1)
    assert norms == pytest.approx([1, 1.2**2, 1.44**2, 1.728**2])
    assert w.item() == pytest.approx(1.728)
    norms = gradient_ascent(lambda: (w**3 / 3).sum(), [w], steps=9, lr=0.1, limit=5)
    assert norms == pytest.approx([1.728**2, 2.0736**2, 2.48832**2])


def test_ascent_over_two_tensors():
    """Of (a^2 + b^2) / 2 the gradient is (a, b): it goes on in its own direction."""
    a, b = (torch.tensor(v, requires_grad=True) for v in (3.0, 4.0))
    norms = gradient_ascent(lambda: (a**2 + b**2) / 2, [a, b], steps=2, lr=1)
    assert norms == pytest.approx([5, 6, 7])


def test_ascent_that_cannot_move():
    a, b = (torch.tensor(v, requires_grad=True) for v in (3.0, 4.0))
    assert gradient_ascent(lambda: 2 * a + 0 * b, [a, b], steps=5, lr=1) == [2]
    for loss in (lambda: b * 2, lambda: a * 0 * a):
        assert set(gradient_ascent(loss, [a], steps=5, lr=1)) == {0}


def test_what_is_not_finite_exceeds_any_limit():
    w = torch.tensor(30.0, requires_grad=True)
    norms = gradient_ascent(lambda: w.exp(), [w], steps=5, lr=1)
    assert norms == pytest.approx([math.exp(30), math.inf])
    assert gradient_ascent(lambda: w * math.nan * w, [w], steps=5, lr=1) == [math.inf]


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormS0", "BN-ReLU"])
def test_direction_against_finite_differences(name):
    """How the weights of a small network change is the derivative of the norm by each of them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 2),
        GraphNormAct(4, graph=KNOWN[name], groups=2),
        nn.Conv2d(4, 3, 2),
        GraphNormAct(3, graph=KNOWN[name], groups=2),
        nn.Conv2d(3, 3, 2),
        nn.Flatten(),
    ).double()
    images = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    weights = [network[k].weight for k in (0, 2, 4)]

    def loss():
        return nn.functional.cross_entropy(network(images), labels)

    def norm():
        gradients = torch.autograd.grad(loss(), weights)
        return math.sqrt(sum(g.square().sum().item() for g in gradients))

    before = [w.detach().clone() for w in weights]
    step = 1e-6
    expected = [torch.empty_like(w) for w in before]
    for weight, slopes in zip(weights, expected, strict=True):
        values, out = weight.data.view(-1), slopes.view(-1)
        for k, value in enumerate(values.tolist()):
            values[k] = value + step
            above = norm()
            values[k] = value - step
            out[k] = (above - norm()) / (2 * step)
            values[k] = value
    first = norm()
    norms = gradient_ascent(loss, weights, steps=1, lr=0.5)
    assert norms == pytest.approx([first, norm()])
    for weight, start, slopes in zip(weights, before, expected, strict=True):
        torch.testing.assert_close((weight - start) / 0.5, slopes, rtol=1e-5, atol=1e-7)


def test_what_is_unstable_runs_away(options):
    """The paper's example, from a gradient no larger than that of BN-ReLU."""
    task = task_from_dict(options(stability_steps=6))
    stable, ours = stability(KNOWN["BN-ReLU"], task)
    assert stable
    assert len(ours) == 7
    passed, norms = stability(REJECTED["unstable"], task)
    assert not passed
    assert norms[0] < ours[0]
    assert max(norms[:-1]) <= 1e8 < norms[-1]
    assert len(norms) < 7
    assert norms == stability(REJECTED["unstable"], task)[1]


@pytest.mark.parametrize("anchor", ["resnet50_cifar", "mobilenetv2_cifar"])
def test_the_zero_layer_is_stable(options, anchor):
    """In MobileNetV2 no convolution reaches the loss."""
    task = task_from_dict(options(stability_anchor=anchor))
    passed, norms = stability(REJECTED["zero"], task)
    assert passed
    assert set(norms) == {0}


def test_the_zero_layer_learns_nothing(options):
    steps = {"quality_steps": 40, "steps": 50}
    task = task_from_dict(
        options(lr=0.02, quality_accuracy=0.5, anchors=["resnet50_cifar"], **steps)
    )
    for graph, learns in ((REJECTED["zero"], False), (KNOWN["EvoNormS0"], True)):
        training = Training(graph, task, "resnet50_cifar")
        passed, accuracies = quality([("resnet50_cifar", training)], task)
        assert passed is learns
        assert list(accuracies) == ["resnet50_cifar"]
        assert training.trainer.step == 40
        if not learns:
            assert accuracies["resnet50_cifar"] == pytest.approx(1 / 3)


def test_the_first_steps_are_those_of_the_whole_ascent(options):
    task = task_from_dict(options(stability_steps=3, ascent_steps=1))
    passed, norms = ascent(KNOWN["EvoNormS0"], task)
    assert passed
    assert norms == stability(KNOWN["EvoNormS0"], task)[1][:2]


def test_propagation(options):
    task = task_from_dict(options())
    passed, found = propagation(KNOWN["EvoNormS0"], task)
    assert passed
    assert list(found) == ["resnet50_cifar", "mobilenetv2_cifar"]
    for numbers in found.values():
        assert 0.01 < numbers["signal"] <= 1
        assert 0.001 < numbers["gradient"] < 1000
    assert propagation(KNOWN["EvoNormS0"], task) == (passed, found)


def test_what_does_not_propagate_is_refused_at_the_first_anchor(options):
    task = task_from_dict(options())
    nothing = {"resnet50_cifar": {"signal": None, "gradient": None}}
    assert propagation(REJECTED["zero"], task) == (False, nothing)
    # Every layer halves what differs between images; after 50 nothing does.
    passed, found = propagation(parse("std_{w,h}(sigmoid(x)) * x + v1"), task)
    assert not passed
    assert found["resnet50_cifar"]["signal"] < 0.01
    shrinking, vanishing = (
        options(**{f"propagation_{key}": 1.0}) for key in ("signal", "gradient")
    )
    for values in (shrinking, vanishing):
        assert not propagation(KNOWN["EvoNormS0"], task_from_dict(values))[0]


class Learner:
    """A training that is known beforehand: one accuracy, or ``{steps: accuracy}``."""

    def __init__(self, accuracy, finite=True):
        self.result, self.finite, self.until = accuracy, finite, None

    def go_on(self, until):
        self.until = until
        return self.finite

    def accuracy(self):
        return self.result[self.until] if isinstance(self.result, dict) else self.result


def test_rungs_go_up_together_until_one_is_below_its_bar(options):
    task = task_from_dict(options(rungs=[3, 5], quality_steps=7, steps=9, filters=["rungs"]))
    a, b = Learner({3: 0.2, 5: 0.3}), Learner({3: 0.3, 5: 0.4})
    found = {"3": {"a": 0.2, "b": 0.3}, "5": {"a": 0.3, "b": 0.4}}
    pairs = (pair for pair in [("a", a), ("b", b)])
    assert rungs(pairs, task, {}) == (True, found)
    bars = {"3": {"a": 0.2, "b": 0.3}, "5": {"b": 0.4, "a": 0.31}}
    assert rungs([("a", a), ("b", b)], task, bars) == (False, {"3": found["3"], "5": {"a": 0.3}})
    assert (a.until, b.until) == (5, 3)
    assert rungs([("a", a), ("b", b)], task, {"3": {"a": 0.25}}) == (False, {"3": {"a": 0.2}})
    assert rungs([("a", Learner(0.5, finite=False))], task, {}) == (False, {"3": {"a": 0.5}})


def test_the_first_failure_ends_the_quality_filter(options):
    task = task_from_dict(options(quality_accuracy=0.2))
    a, b, c = Learner(0.2), Learner(0.19), Learner(0.5)
    assert quality([("a", a), ("b", b), ("c", c)], task) == (False, {"a": 0.2, "b": 0.19})
    assert (a.until, b.until, c.until) == (2, 2, None)
    assert quality([("a", a), ("c", c)], task) == (True, {"a": 0.2, "c": 0.5})


def test_what_is_not_finite_fails_the_quality_filter(options):
    task = task_from_dict(options(quality_accuracy=0))
    assert quality([("a", Learner(1 / 3, finite=False))], task) == (False, {"a": 1 / 3})
