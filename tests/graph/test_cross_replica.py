"""Layer graphs with the statistics of all ranks: two processes equal one on both parts."""

import pytest
import torch

from evonorm_plugins import convert_cross_replica, get_norm_act
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.module import GraphNormAct, SyncGraphNormAct
from tests.layers import cross_replica_ranks

GRAPHS = {
    # Of positions alone: sizes may differ. A deviation and a root of what statistics are part of.
    "positions": (
        "div",
        ("add", ("mul", "v1", "x"), ("neg", ("mean_{b,w,h}", ("tanh", "x")))),
        ("max", ("std_{b,w,h}", "x"), ("rms_{b,w,h}", ("add", "x", ("mean_{b,w,h}", "x")))),
    ),
    # Of images: a statistic over the batch of what is one number for each.
    "images": (
        "add",
        ("div", "x", ("std_{b,w,h}", ("std_{w,h}", ("mul", "v1", "x")))),
        ("mul", ("mean_{b,w,h}", ("rms_{w,h,c}", "x")), ("std_{b,w,h}", "v0")),
    ),
    # By a fused operator, that of EvoNorm-B2.
    "fused": ("div", "x", ("max", ("std_{b,w,h}", "x"), ("add", "x", ("rms_{w,h}", "x")))),
}
SHAPES = {
    "positions": {
        "equal": [(2, 4, 3, 3), (2, 4, 3, 3)],
        "unequal": [(3, 4, 5, 2), (1, 4, 3, 3)],
        "empty rank": [(0, 4, 3, 3), (2, 4, 3, 3)],
    },
    "images": {
        "equal": [(2, 4, 3, 3), (2, 4, 3, 3)],
        "unequal": [(3, 4, 3, 3), (1, 4, 3, 3)],
        "empty rank": [(0, 4, 3, 3), (2, 4, 3, 3)],
    },
}
SHAPES["fused"] = SHAPES["images"]
CASES = [(name, shape) for name in GRAPHS for shape in SHAPES[name]]


@pytest.fixture(scope="module")
def outcomes(run_ranks, tmp_path_factory):
    folder, cases = tmp_path_factory.mktemp("graphs"), {}
    for name, shape in CASES:
        path = folder / f"{name}.json"
        Graph.of(GRAPHS[name]).save(path)
        cases[name, shape] = cross_replica_ranks.draw_case(f"{path}(eps=0.1)", SHAPES[name][shape])
    return cases, run_ranks(cross_replica_ranks.outcome, cases, 2)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_two_ranks_equal_the_batch_of_both(name, shape, outcomes):
    cases, ranks = outcomes
    found = [rank[name, shape] for rank in ranks]
    cross_replica_ranks.assert_as_one(cases[name, shape], found, by_position=name == "positions")


def test_classes(tmp_path):
    Graph.of(GRAPHS["images"]).save(tmp_path / "layer.json")
    plain = get_norm_act(str(tmp_path / "layer.json"), 4)
    sync = get_norm_act(f"{tmp_path}/layer.json(cross_replica=True)", 4)
    assert (type(plain), type(sync)) == (GraphNormAct, SyncGraphNormAct)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(plain(x), sync(x))  # without a process group
    assert type(sync.without_activation()) is SyncGraphNormAct
    keys = list(plain.state_dict())
    assert convert_cross_replica(plain) is plain
    assert type(plain) is SyncGraphNormAct
    assert list(plain.state_dict()) == keys
