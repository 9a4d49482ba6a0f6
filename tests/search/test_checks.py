"""The cheapest reasons to refuse a candidate."""

import random

import pytest
import torch

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.checks import trial
from evonorm_plugins.search.mutation import random_graph


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


def test_the_same_every_time():
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
