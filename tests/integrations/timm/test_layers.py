"""Every layer of timm against the one that takes its place."""

import copy

import pytest
import torch

from evonorm_plugins.integrations.timm import fuse
from evonorm_plugins.layers import NormAct
from tests.integrations.timm.comparison import assert_as_good, numbers

SHAPES = [(3, 8, 5, 7), (2, 8, 1, 1), (1, 8, 16, 16)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_numbers(timms, shape, training, exact):
    timms.train(training)
    ours, report = fuse(copy.deepcopy(timms))
    assert isinstance(ours, NormAct)
    assert report.fused == {"": f"{type(timms).__name__}, now {type(ours).__name__}"}
    for scale, shift in ((1, 0), (5, 2)):
        x, dy = torch.randn(shape) * scale + shift, torch.randn(shape)
        expected = exact(timms, x, dy)
        assert_as_good(numbers(ours, x, dy), numbers(timms, x, dy), expected)
        # Moving variances have moved on by now, in both.
        torch.testing.assert_close(ours.state_dict(), timms.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_same_numbers_in_half_precision(timms, dtype, training, exact):
    """Parameters in float32, as under autocast."""
    timms.train(training)
    ours = fuse(copy.deepcopy(timms)).model
    x, dy = torch.randn(3, 8, 5, 7).to(dtype), torch.randn(3, 8, 5, 7).to(dtype)
    expected = exact(timms, x, dy)
    assert_as_good(numbers(ours, x, dy), numbers(timms, x, dy), expected, slack=1e-3)


def test_same_state_dict(timms):
    keys, tensors = (
        list(timms.state_dict()),
        {id(t) for t in timms.state_dict(keep_vars=True).values()},
    )
    parameters = dict(timms.named_parameters())
    fresh = copy.deepcopy(timms)
    ours = fuse(timms).model
    assert list(ours.state_dict()) == keys
    assert {id(t) for t in ours.state_dict(keep_vars=True).values()} == tensors
    assert {k: id(p) for k, p in ours.named_parameters()} == {
        k: id(p) for k, p in parameters.items()
    }
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(2)
    fresh.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(ours.eval()(x), fresh.eval()(x))


def test_without_an_unbiased_variance_the_moving_one_stays(exact):
    """timm divides by zero where a channel has one element, and moves to NaN where it has none."""
    from timm.layers import EvoNorm2dB0

    ours = fuse(EvoNorm2dB0(8)).model
    ours(torch.randn(1, 8, 1, 1))
    ours(torch.randn(0, 8, 3, 3))
    assert ours.running_var.eq(1).all()
