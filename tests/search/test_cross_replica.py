"""Layer graphs with the statistics of all ranks: two processes equal one on both parts."""

from pathlib import Path

import pytest
import torch

from evonorm_plugins import convert_cross_replica, get_norm_act
from evonorm_plugins.search.graph import Graph
from evonorm_plugins.search.layer import GraphNormAct, SyncGraphNormAct

SCRIPT = Path(__file__).parents[1] / "layers" / "cross_replica_ranks.py"
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
CASES = [(name, shape) for name in GRAPHS for shape in SHAPES[name]]


@pytest.fixture(scope="module")
def outcomes(run_ranks, tmp_path_factory):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder, cases = tmp_path_factory.mktemp("graphs"), {}
    for name, shape in CASES:
        path = folder / f"{name}.json"
        Graph.of(GRAPHS[name]).save(path)
        xs = [torch.randn(s, dtype=torch.float64) * 2 + 1 for s in SHAPES[name][shape]]
        cases[name, shape] = f"{path}(eps=0.1)", xs, [torch.randn_like(x) for x in xs]
    return cases, run_ranks(SCRIPT, cases, 2)


def rows(x):
    """Every position a sample of its own: images of any sizes in one batch."""
    return x.permute(0, 2, 3, 1).reshape(-1, 4, 1, 1)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_two_ranks_equal_the_batch_of_both(name, shape, outcomes):
    cases, ranks = outcomes
    path, xs, dys = cases[name, shape]

    def join(parts):
        return torch.cat([rows(p) for p in parts] if name == "positions" else parts)

    layer = get_norm_act(path, 4, dtype=torch.float64)
    x = join(xs).requires_grad_()
    y = layer(x)
    dx, *parameters = torch.autograd.grad(y, [x, *layer.parameters()], join(dys))
    found = [rank[name, shape] for rank in ranks]
    torch.testing.assert_close(join([f["y"] for f in found]), y)
    torch.testing.assert_close(join([f["gradients"][0] for f in found]), dx)
    for k, expected in enumerate(parameters, 1):
        # Local: the processes' gradients add up to those of the whole.
        torch.testing.assert_close(sum(f["gradients"][k] for f in found), expected)
    for f in found:
        torch.testing.assert_close(f["buffers"], dict(layer.named_buffers()))


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
