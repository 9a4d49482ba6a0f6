"""EvoNorm-B0, B1, B2 and RS + rej: statistics over the batch and their moving average."""

import copy

import pytest
import torch

from evonorm_plugins import EvoNormB0, get_norm_act

B_SERIES = ["EvoNormB0", "EvoNormB1", "EvoNormB2", "RS + rej"]


def statistic(name, x):
    """What the layer divides by the root of, in training: ``(C,)``."""
    if name == "RS + rej":
        return x.square().mean((0, 2, 3))
    return x.var((0, 2, 3), correction=0)


@pytest.mark.one_impl
@pytest.mark.parametrize("scale", [1e-3, 7, 1e3])
@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormB2", "RS + rej"])
def test_scale_of_the_input_does_not_matter(name, scale, make, draw):
    """Numerator and denominator are both homogeneous in x, eps aside."""
    layer = make(name, eps=1e-14, dtype=torch.float64)
    x = draw(3, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x * scale), layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.one_impl
def test_scale_matters_where_the_paper_says_so(make, draw):
    """(x + 1) * rms of B1 is not homogeneous: the test above can fail."""
    layer = make("EvoNormB1", eps=1e-14, dtype=torch.float64)
    x = draw(3, 8, 5, 7, dtype=torch.float64)
    assert (layer(x * 7) - layer(x)).abs().max() > 0.1


@pytest.mark.one_impl
def test_eps_bounds_the_gain_of_a_small_input(make, draw):
    layer = make("EvoNormB0", eps=1e-2, dtype=torch.float64)
    x = draw(3, 8, 5, 7, dtype=torch.float64)
    zero = layer.bias.detach()[:, None, None]
    assert ((layer(x * 1e-6) - zero).abs() < 1e-4).all()


@pytest.mark.parametrize("momentum", [0, 0.1, 0.25, 1])
@pytest.mark.parametrize("name", B_SERIES)
def test_moving_variance_averages_the_biased_one(name, momentum, draw, device):
    layer = get_norm_act(name, 6, momentum=momentum).to(device)
    expected = torch.ones(6, device=device)
    for _ in range(3):
        x = draw(2, 6, 3, 2, scale=2, shift=1)
        layer(x)
        expected = (1 - momentum) * expected + momentum * statistic(name, x)
    torch.testing.assert_close(layer.running_var, expected)


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormB1", "EvoNormB2"])
def test_moving_variance_averages_the_unbiased_one_where_asked_to(name, draw, device):
    layer = get_norm_act(name, 6, unbiased_running_var=True).to(device)
    x = draw(2, 6, 3, 2, scale=2, shift=1)
    layer(x)
    unbiased = x.var((0, 2, 3), correction=1)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * unbiased)
    # Of one element a channel, and of none, there is no such variance.
    before = layer.running_var.clone()
    layer(draw(1, 6, 1, 1))
    layer(draw(0, 6, 3, 3))
    assert torch.equal(layer.running_var, before)
    assert layer.without_activation().unbiased_running_var


def test_moving_variance_keeps_nine_tenths(device, impl):
    # Two elements, 0 and 2: the biased variance is 1, the unbiased one 2.
    layer = EvoNormB0(1).to(device)
    layer.running_var.fill_(2)
    layer(torch.tensor([0.0, 2.0], device=device).view(2, 1, 1, 1))
    assert layer.running_var.item() == pytest.approx(0.9 * 2 + 0.1 * 1)


@pytest.mark.numbers
@pytest.mark.parametrize("name", B_SERIES)
def test_inference_uses_the_moving_variance(name, make, draw):
    layer = make(name).eval()
    x = draw(4, 8, 5, 7, scale=3)
    before = layer.running_var.clone()
    y = layer(x)
    assert torch.equal(layer.running_var, before)
    # Whatever else is in the batch.
    parts = torch.cat([layer(x[:1]), layer(x[1:])])
    torch.testing.assert_close(y, parts)
    layer.train()
    assert not torch.allclose(layer(x), y)
    # With the moving variance at that of this batch, both modes agree.
    layer.running_var.copy_(statistic(name, x))
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("name", B_SERIES)
def test_training_depends_on_the_batch(name, make, draw):
    layer = make(name)
    x = draw(4, 8, 5, 7)
    x[3] *= 10
    assert not torch.allclose(layer(x)[:1], layer(x[:1]))


@pytest.mark.parametrize("name", B_SERIES)
def test_inference_passes_no_gradient_through_the_variance(name, make, draw):
    """One sample's gradient is then its own affair; in training it is not."""
    layer = make(name)
    x = draw(2, 8, 3, 4).requires_grad_()
    for training in (True, False):
        (dx,) = torch.autograd.grad(layer.train(training)(x)[0].square().sum(), x)
        assert bool(dx[1].any()) is training


def test_freeze(make, draw):
    layer = make("EvoNormB0")
    x = draw(4, 8, 5, 7, scale=3)
    expected = copy.deepcopy(layer).eval()(x)
    assert layer.uses_batch()
    assert layer.freeze() is layer
    before = layer.running_var.clone()
    assert layer.training
    assert not layer.uses_batch()
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.running_var, before)
    assert repr(layer).endswith(", frozen)")
    assert copy.deepcopy(layer).frozen


def test_uses_batch(make):
    assert make("EvoNormB0").uses_batch()
    assert not make("EvoNormB0").eval().uses_batch()
    assert not make("EvoNormB0", apply_act=False).uses_batch()


@pytest.mark.numbers
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
@pytest.mark.parametrize("name", B_SERIES)
def test_values_that_are_not_finite_leave_the_moving_variance(name, value, make, draw):
    """1e30 squared overflows float32. Channels with sound values go on."""
    layer = make(name)
    before = layer.running_var.clone()
    x = draw(2, 8, 3, 4)
    x[1, 5, 2, 3] = value
    layer(x)
    after = layer.running_var
    assert after.isfinite().all()
    assert (after != before).tolist() == [c != 5 for c in range(8)]


@pytest.mark.parametrize("name", B_SERIES)
def test_moving_variance_is_the_same_with_and_without_gradients(name, make, draw):
    recorded, plain = (make(name) for _ in range(2))
    plain.load_state_dict(recorded.state_dict())
    x = draw(3, 8, 5, 7)
    y = recorded(x.clone().requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), y)
    torch.testing.assert_close(plain.running_var, recorded.running_var)


@pytest.mark.parametrize("name", B_SERIES)
def test_two_forward_passes_before_a_backward_pass(name, make, draw):
    """The second changes the moving variance in place; the first must not have kept it."""
    layer = make(name)
    fake, real = draw(3, 8, 5, 7).requires_grad_(), draw(3, 8, 5, 7)
    alone = copy.deepcopy(layer).eval()
    (expected,) = torch.autograd.grad(alone(fake).square().sum(), fake)
    y = layer.eval()(fake)
    z = layer.train()(real)
    (y.square().sum() + z.sum()).backward()
    torch.testing.assert_close(fake.grad, expected)


@pytest.mark.numbers
@pytest.mark.parametrize("name", B_SERIES)
def test_one_element_per_channel(name, make, draw):
    """Its biased variance is 0, an unbiased one would be NaN."""
    layer = make(name)
    before = layer.running_var.clone()
    x = draw(1, 8, 1, 1).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    expected = 0.9 * before + 0.1 * statistic(name, x.detach())
    torch.testing.assert_close(layer.running_var, expected)


@pytest.mark.numbers
def test_constant_channel(make, device, impl):
    layer = make("EvoNormB0")
    x = torch.full((2, 8, 3, 3), 5.0, device=device, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


HALF = pytest.mark.filterwarnings("ignore:moving statistics in float16 end")


@HALF
@pytest.mark.parametrize("name", B_SERIES)
def test_variances_beyond_float16(name, draw, device):
    """A tenth of such a variance is within its range at first; then the largest number stays."""
    layer = get_norm_act(name, 8).to(device).half()
    x = draw(4, 8, 5, 7, dtype=torch.float16, scale=400)
    assert (statistic(name, x.float()) > torch.finfo(torch.float16).max).any()
    expected = torch.ones(8, device=device)
    for _ in range(20):
        layer(x)
        expected = (0.9 * expected + 0.1 * statistic(name, x.float())).clamp(max=65504)
    torch.testing.assert_close(layer.running_var.float(), expected, rtol=1e-2, atol=0)


def test_float16_moving_variance_says_where_it_ends(draw, device):
    with pytest.warns(UserWarning, match="moving statistics in float16 end at 65,504"):
        EvoNormB0(8).to(device).half()(draw(2, 8, 3, 3, dtype=torch.float16))


@HALF
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moving_variance_in_half_precision_is_rounded_once(dtype, draw, device):
    layer = EvoNormB0(8).to(device, dtype)
    x = draw(4, 8, 5, 7, dtype=dtype)
    layer(x)
    expected = (0.9 + 0.1 * statistic("EvoNormB0", x.double())).to(dtype)
    torch.testing.assert_close(layer.running_var, expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", B_SERIES)
def test_who_kept_the_moving_average_is_told_of_its_change(name, make, draw):
    """As after any change in place: a wrong gradient would come of it without a word."""
    layer, factor = make(name), torch.ones(8, requires_grad=True)
    kept = (layer.running_var * factor).sum()
    layer(draw(3, 8, 5, 7))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()
