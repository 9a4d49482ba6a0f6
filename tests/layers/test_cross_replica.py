"""Converted layers: two processes give what one gives on the batch of both."""

import pytest
import torch

from evonorm_plugins import convert_cross_replica, get_norm_act
from evonorm_plugins.layers import CrossReplicaBatchNorm2d, SyncEvoNormB0, SyncRSRejLayer
from tests.layers import cross_replica_ranks

NAMES = ["BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish", "RS + rej", "EvoNormB0"]
SHAPES = {
    "equal": [(2, 4, 3, 3), (2, 4, 3, 3)],
    "unequal": [(3, 4, 5, 2), (1, 4, 3, 3)],
    "empty rank": [(0, 4, 3, 3), (2, 4, 3, 3)],
    "vectors": [(3, 4), (2, 4)],
    "volumes": [(2, 4, 3, 2, 2), (1, 4, 3, 2, 2)],
}
CASES = [(name, shape) for name in NAMES for shape in SHAPES]
CASES += [("BatchNorm1d", "vectors"), ("BatchNorm3d", "volumes")]
WHOLE = ["EvoNormB0", "BatchNorm1d", "BatchNorm3d"]  # looked at as they are


@pytest.fixture(scope="module")
def outcomes(run_ranks):
    cases = {
        (name, shape): cross_replica_ranks.draw_case(name, SHAPES[shape]) for name, shape in CASES
    }
    for shape, sizes in SHAPES.items():  # by the kernels
        case = cross_replica_ranks.draw_case("RS + rej", sizes, torch.float32)
        cases["RS + rej, float32", shape] = case
    return cases, run_ranks(cross_replica_ranks.outcome, cases, 2)


@pytest.mark.parametrize(
    ("name", "shape"), [*CASES, *(("RS + rej, float32", shape) for shape in SHAPES)]
)
def test_two_ranks_equal_the_batch_of_both(name, shape, outcomes):
    cases, ranks = outcomes
    if name == "EvoNormB0" and shape in ("unequal", "empty rank"):
        pytest.skip("it looks at whole images too: see test_sync.py")
    found = [rank[name, shape] for rank in ranks]
    cross_replica_ranks.assert_as_one(cases[name, shape], found, by_position=name not in WHOLE)


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
