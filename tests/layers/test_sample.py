"""EvoNorm-S0, S1, S2: a sample's own statistics."""

import pytest
import torch

from evonorm_plugins import get_norm_act
from evonorm_plugins.registry import try_norm_act

S_SERIES = ["EvoNormS0", "EvoNormS1", "EvoNormS2"]


@pytest.mark.one_impl
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", S_SERIES)
def test_a_sample_does_not_see_its_batch(name, training, make, draw):
    """Outputs and input gradients; parameter gradients add up (accumulation is a large batch)."""
    layer = make(name, groups=4, dtype=torch.float64).train(training)
    x, dy = (draw(6, 8, 5, 7, dtype=torch.float64) for _ in range(2))

    def run(*sizes):
        layer.zero_grad()
        outputs, gradients = [], []
        for part, d in zip(x.split(sizes), dy.split(sizes), strict=True):
            leaf = part.clone().requires_grad_()
            y = layer(leaf)
            y.backward(d)
            outputs.append(y.detach())
            gradients.append(leaf.grad)
        parameters = [p.grad.clone() for p in layer.parameters()]
        return [torch.cat(outputs), torch.cat(gradients), *parameters]

    whole = run(6)
    for sizes in [(1, 5), (2, 2, 2), (3, 0, 3), (1,) * 6]:
        torch.testing.assert_close(run(*sizes), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.one_impl
def test_scale_of_a_large_input_does_not_matter(make, draw):
    """S0 is scale-invariant asymptotically (Section 5.6): x / std where v x > 0, else zero."""
    layer = make("EvoNormS0", dtype=torch.float64)
    with torch.no_grad():
        layer.v.copy_(torch.tensor([-2.0, -1, -0.5, -0.1, 0.1, 0.5, 1, 2]))
    x = draw(3, 8, 5, 7, dtype=torch.float64)
    x = x.sign() * x.abs().clamp(min=0.01)  # how near zero tells what a large scale is
    gated = torch.where(layer.v.detach()[:, None, None] * x > 0, x, 0)
    std = x.unflatten(1, (4, 2)).var((2, 3, 4), correction=0, keepdim=True).sqrt()
    gamma, beta = (p.detach()[:, None, None] for p in (layer.weight, layer.bias))
    limit = (gated.unflatten(1, (4, 2)) / std).flatten(1, 2) * gamma + beta
    torch.testing.assert_close(layer(x * 1e5).detach(), limit, rtol=1e-9, atol=1e-9)
    assert (layer(x) - layer(x * 7)).abs().max() > 0.1  # not at every scale


@pytest.mark.numbers
@pytest.mark.parametrize("name", S_SERIES)
def test_a_group_does_not_see_the_others(name, make, draw):
    layer = make(name, groups=4)
    x = draw(2, 8, 5, 7)
    y = layer(x)
    x[:, 2:4] *= 10
    changed = (layer(x) != y).any(3).any(2).any(0)
    assert changed.tolist() == [False, False, True, True, False, False, False, False]


@pytest.mark.parametrize("name", S_SERIES)
def test_training_and_inference_agree(name, make, draw):
    layer = make(name, groups=4)
    x = draw(2, 8, 5, 7)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    assert not list(layer.buffers())


@pytest.mark.one_impl
@pytest.mark.parametrize("name", S_SERIES)
def test_scale_of_the_input_vanishes_as_it_grows(name, make, draw):
    """sigmoid(v * c * x) tends to a step, so the output to a limit that holds no c."""
    layer = make(name, groups=4, dtype=torch.float64)
    x = draw(3, 8, 5, 7, dtype=torch.float64)
    v = torch.ones(8).to(x) if layer.v is None else layer.v
    groups = x.unflatten(1, (4, 2))
    if name == "EvoNormS2":
        spread = groups.square().mean((2, 3, 4), keepdim=True).sqrt()
    else:
        spread = groups.var((2, 3, 4), correction=0, keepdim=True).sqrt()
    normalized = (groups / spread).flatten(1, 2)
    limit = normalized * (v[:, None, None] * x > 0)
    limit = limit * layer.weight[:, None, None] + layer.bias[:, None, None]

    scales = [1, 10, 100, 1e4, 1e6]
    off = [(layer(x * c) - limit).abs().max().item() for c in scales]
    assert off[0] > 0.1  # at the scale of the data it is not invariant
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-5
    torch.testing.assert_close(layer(x * 1e5), layer(x * 3e6), rtol=1e-4, atol=1e-4)


@pytest.mark.numbers
@pytest.mark.parametrize("name", S_SERIES)
def test_groups_as_many_as_channels_or_one(name, draw, device):
    x = draw(2, 6, 3, 5)
    whole, instance = (get_norm_act(name, 6, groups=g).to(device)(x) for g in (1, 6))
    act = torch.nn.functional.silu(x)
    for y, dims in [(whole, (1, 2, 3)), (instance, (2, 3))]:
        square = x.square().mean(dims, keepdim=True)
        mean = 0 if name == "EvoNormS2" else x.mean(dims, keepdim=True)
        torch.testing.assert_close(y, act / (square - mean**2 + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)


def test_more_groups_than_channels(draw, device):
    x = draw(2, 6, 3, 5)
    layer = get_norm_act("EvoNormS0", 6).to(device)
    assert layer.groups == 32
    assert torch.equal(layer(x), get_norm_act("EvoNormS0", 6, groups=6).to(device)(x))


@pytest.mark.one_impl
@pytest.mark.parametrize("name", S_SERIES)
def test_group_size_in_place_of_groups(name, draw, device):
    x = draw(2, 48, 3, 5)
    layer = get_norm_act(name, 48, group_size=8).to(device)
    assert layer.groups == 6
    assert torch.equal(layer(x), get_norm_act(f"{name}(groups=6)", 48).to(device)(x))
    assert "group_size=8" in repr(layer)
    assert layer.without_activation().options() == layer.options()
    # A size that divides no power of two is no reason to refuse the name.
    try_norm_act(name, group_size=48)
    try_norm_act(f"{name}(group_size=48)")


@pytest.mark.numbers
@pytest.mark.parametrize("name", S_SERIES)
def test_constant_input(name, make, device, impl):
    layer = make(name, groups=4)
    x = torch.full((2, 8, 3, 3), 5.0, device=device, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
