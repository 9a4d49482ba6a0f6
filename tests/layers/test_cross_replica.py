"""Converted layers: two processes give what one gives on the batch of both."""

from pathlib import Path

import pytest
import torch

from evonorm_plugins import convert_cross_replica, get_norm_act
from evonorm_plugins.layers import CrossReplicaBatchNorm2d, SyncEvoNormB0, SyncRSRejLayer

NAMES = ["BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish", "RS + rej", "EvoNormB0"]
SHAPES = {
    "equal": [(2, 4, 3, 3), (2, 4, 3, 3)],
    "unequal": [(3, 4, 5, 2), (1, 4, 3, 3)],
    "empty rank": [(0, 4, 3, 3), (2, 4, 3, 3)],
}
CASES = [(name, shape) for name in NAMES for shape in SHAPES]


@pytest.fixture(scope="module")
def outcomes(run_ranks):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    cases = {}
    for name, shape in CASES:
        xs = [torch.randn(s, dtype=torch.float64) * 2 + 1 for s in SHAPES[shape]]
        cases[name, shape] = name, xs, [torch.randn_like(x) for x in xs]
    return cases, run_ranks(Path(__file__).with_name("cross_replica_ranks.py"), cases, 2)


def rows(x):
    """Every position a sample of its own: images of any sizes in one batch."""
    return x.permute(0, 2, 3, 1).reshape(-1, 4, 1, 1)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_two_ranks_equal_the_batch_of_both(name, shape, outcomes):
    cases, ranks = outcomes
    _, xs, dys = cases[name, shape]
    if name == "EvoNormB0" and shape != "equal":
        pytest.skip("it looks at whole images too: see test_sync.py")
    join = torch.cat if name == "EvoNormB0" else lambda parts: torch.cat([rows(p) for p in parts])
    layer = get_norm_act(name, 4, dtype=torch.float64)
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


def test_only_the_class_changes():
    layers = torch.nn.Sequential(*(get_norm_act(name, 4) for name in NAMES))
    keys = list(layers.state_dict())
    assert convert_cross_replica(layers) is layers
    assert list(layers.state_dict()) == keys
    assert [type(m.norm) for m in layers[:4]] == [CrossReplicaBatchNorm2d] * 4
    assert (type(layers[4]), type(layers[5])) == (SyncRSRejLayer, SyncEvoNormB0)
    # Without a process group they are their plain counterparts.
    x = torch.randn(2, 4, 3, 3)
    plain = torch.nn.Sequential(*(get_norm_act(name, 4) for name in NAMES))
    torch.testing.assert_close(layers(x), plain(x))
