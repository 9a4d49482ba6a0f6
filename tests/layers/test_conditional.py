"""The class-conditional affine transform on top of every layer."""

import pytest
import torch
from torch import nn

from evonorm_plugins import ConditionalNormAct, get_norm_act


@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_zero_conditioning_equals_the_plain_layer(every, training, apply_act, draw, device):
    plain = get_norm_act(every, 8, apply_act=apply_act).to(device).train(training)
    conditional = ConditionalNormAct(get_norm_act(every, 8, apply_act=apply_act), 5).to(device)
    conditional.train(training)
    x, dy = draw(4, 8, 3, 5), draw(4, 8, 3, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = conditional(a, torch.zeros(4, 5, device=device))
    expected = plain(b)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(y, a, dy), torch.autograd.grad(expected, b, dy), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "BN-ReLU", "LN-ReLU", "PixelNorm-ReLU"])
def test_gain_and_bias_of_every_sample(name, draw, device):
    """One sample at a time through a plain layer whose gamma and beta are that sample's."""
    conditional = ConditionalNormAct(get_norm_act(name, 8), 5).to(device).eval()
    condition = draw(3, 5)
    x = draw(3, 8, 4, 4)
    y = conditional(x, condition)
    plain = get_norm_act(name, 8).to(device).eval()
    owner = plain if hasattr(plain, "weight") and plain.weight is not None else plain.norm
    for i in range(3):
        with torch.no_grad():
            owner.weight.copy_(1 + conditional.gain(condition[i]))
            owner.bias.copy_(conditional.bias(condition[i]))
        torch.testing.assert_close(y[i : i + 1], plain(x[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_parameters(every):
    layer = ConditionalNormAct(get_norm_act(every, 8), 5)
    plain = {k for k, _ in get_norm_act(every, 8).named_parameters()}
    own = {k for k, _ in layer.named_parameters() if k.startswith("layer.")}
    assert own == ({"layer.v"} if "v" in plain else set())
    assert layer.gain.weight.shape == layer.bias.weight.shape == (8, 5)
    assert layer.gain.bias is None


def test_half_precision_gain_is_added_in_float32(draw, device):
    layer = ConditionalNormAct(get_norm_act("EvoNormS0", 8), 1).to(device)
    nn.init.constant_(layer.gain.weight, 2**-10)  # lost beside 1 in bfloat16
    x = torch.full((1, 8, 2, 2), 1.0, device=device, dtype=torch.bfloat16)
    x[..., 0] = -1
    seen = []
    layer.layer.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.autocast(device.type, torch.bfloat16):
        layer(x, torch.ones(1, 1, device=device, dtype=torch.bfloat16))
    assert (seen[0] == 1 + 2**-10).all()


def test_bad_input(draw):
    with pytest.raises(TypeError, match="Identity is not a NormAct"):
        ConditionalNormAct(nn.Identity(), 5)
    layer = get_norm_act("EvoNormS0", 8)
    with pytest.raises(ValueError, match=r"has its own weight and bias; release_affine\(\)"):
        layer(draw(2, 8, 3, 3), torch.ones(2, 8), torch.zeros(2, 8))
    released = get_norm_act("BN-ReLU", 8).release_affine()
    with pytest.raises(ValueError, match="BNReLU gave up its weight and bias: call it with both"):
        released(draw(2, 8, 3, 3))
