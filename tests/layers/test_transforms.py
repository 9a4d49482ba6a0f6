"""Under torch.func and forward-mode differentiation, against the formulas by hand in float64."""

import runpy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from evonorm_plugins import kernels, list_norm_acts, torch_private

SAMPLE = [n for n in list_norm_acts() if n.startswith(("EvoNormS", "GN-", "LN-", "Candidate-S"))]
SAMPLE += ["FRN", "PixelNorm-ReLU", "Random", "Random + rej"]
BATCH = [n for n in list_norm_acts() if n not in SAMPLE]
# Of these the moving statistics are ours, not those of torch's norm.
OWN_BATCH = [n for n in BATCH if not n.startswith("BN-")]


@pytest.fixture
def built(make):
    """``built(name)``: the layer, its parameters, and ``loss(parameters, x)``.

    In eval mode where it depends on the batch.
    """

    def built(name, **options):
        layer = make(name, dtype=torch.float64, **options).train(name in SAMPLE)
        parameters = {k: p.detach() for k, p in layer.named_parameters()}

        def loss(parameters, x):
            return functional_call(layer, parameters, (x,)).square().sum()

        return layer, parameters, loss

    return built


def s0_by_hand(x, weight, bias, v, groups=4, eps=1e-5):
    """EvoNorm-S0 of one sample ``(C, H, W)``."""
    parts = x.unflatten(0, (groups, -1))
    deviation = parts - parts.mean((1, 2, 3), keepdim=True)
    std = (deviation.square().mean((1, 2, 3), keepdim=True) + eps).sqrt()
    weight, bias, v = (p[:, None, None] for p in (weight, bias, v))
    return x / (1 + (-v * x).exp()) / std.expand_as(parts).flatten(0, 1) * weight + bias


@pytest.mark.one_impl
def test_gradients_of_every_sample(built, draw):
    """What DP-SGD clips: gradients by sample, of EvoNorm-S0 as a hand-written formula has them."""
    _, parameters, loss = built("EvoNormS0")
    x = draw(5, 8, 3, 4, dtype=torch.float64)
    found = vmap(grad(loss), (None, 0))(parameters, x[:, None])
    for k, sample in enumerate(x):
        given = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        value = s0_by_hand(sample, **given).square().sum()
        expected = dict(zip(given, torch.autograd.grad(value, list(given.values())), strict=True))
        torch.testing.assert_close({n: g[k] for n, g in found.items()}, expected)


@pytest.mark.one_impl
@pytest.mark.parametrize("apply_act", [True, False])
def test_transforms_agree_with_autograd(every, apply_act, built, draw):
    layer, parameters, loss = built(every, apply_act=apply_act)
    x, dx = (draw(3, 8, 2, 3, dtype=torch.float64) for _ in range(2))
    given = x.clone().requires_grad_()
    y = layer(given)
    expected = torch.autograd.grad(y.square().sum(), [given, *layer.parameters()])
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x).sum((2, 3)), x)

    of_x, of_parameters = grad(loss, (1, 0))(parameters, x)
    torch.testing.assert_close([of_x, *of_parameters.values()], list(expected))
    torch.testing.assert_close(vjp(layer, x)[1](2 * y.detach())[0], expected[0])
    torch.testing.assert_close(jacrev(lambda x: layer(x).sum((2, 3)))(x), jacobian)
    torch.testing.assert_close(jacfwd(lambda x: layer(x).sum((2, 3)))(x), jacobian)
    along = jacobian.flatten(2) @ dx.flatten()
    torch.testing.assert_close(jvp(layer, (x,), (dx,))[1].sum((2, 3)), along)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, dx)))
        torch.testing.assert_close(dual.primal, y)
        torch.testing.assert_close(dual.tangent.sum((2, 3)), along)


@pytest.mark.one_impl
def test_vmap_and_second_derivatives(every, built, draw):
    layer, _, _ = built(every)
    x = draw(2, 8, 1, 2, dtype=torch.float64)

    def loss(x):
        return layer(x).pow(3).sum()

    torch.testing.assert_close(hessian(loss)(x), torch.autograd.functional.hessian(loss, x))
    batches = draw(4, 3, 8, 2, 3, dtype=torch.float64)
    expected = torch.stack([layer(x) for x in batches])
    torch.testing.assert_close(vmap(layer)(batches), expected)


@pytest.mark.one_impl
@pytest.mark.parametrize("name", OWN_BATCH)
def test_moving_statistics_that_are_inputs_are_updated(name, make, draw):
    """A transform of a function that is given the buffers; so it is with torch's own norms."""
    layer = make(name, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}
    buffers = {k: b.clone() for k, b in layer.named_buffers()}
    x = draw(3, 8, 4, 5, dtype=torch.float64)

    def loss(parameters, buffers, x):
        return functional_call(layer, (parameters, buffers), (x,)).square().sum()

    found = grad(loss)(parameters, buffers, x)
    value = layer(x).square().sum()
    expected = torch.autograd.grad(value, list(layer.parameters()))
    torch.testing.assert_close(list(found.values()), list(expected))
    torch.testing.assert_close(buffers, dict(layer.named_buffers()))


@pytest.mark.one_impl
@pytest.mark.parametrize("name", OWN_BATCH)
def test_moving_statistics_that_are_no_inputs_are_an_error(name, make, draw):
    layer, x = make(name), draw(3, 8, 4, 5)
    before = {k: b.clone() for k, b in layer.named_buffers()}
    assert before
    for transformed in (grad(lambda x: layer(x).sum()), vmap(lambda x: layer(x[None]))):
        with pytest.raises(RuntimeError, match=r"moving statistics .* use eval\(\) or freeze\(\)"):
            transformed(x)
    assert all(torch.equal(b, before[k]) for k, b in layer.named_buffers())
    layer.freeze()
    assert vmap(grad(lambda x: layer(x[None]).sum()))(x).shape == x.shape


def test_a_kernel_that_was_asked_for_is_not_replaced(make, draw, impl):
    if impl == "torch" or kernels._MISSING[impl]:
        pytest.skip("plain torch is what transforms see")
    layer = make("EvoNormS0", impl=impl)
    x = draw(2, 8, 3, 3)
    layer(x)
    with pytest.raises(RuntimeError, match=f"impl='{impl}' cannot run: torch.func"):
        vmap(lambda x: layer(x[None]))(x)


def test_compiled(make, draw):
    layer, x = make("EvoNormS0"), draw(3, 8, 4, 5)
    by_sample = vmap(grad(lambda x: layer(x[None]).square().sum()))
    compiled = torch.compile(by_sample, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), by_sample(x))


@pytest.mark.one_impl
def test_nothing_changes_after_a_transform(make, draw, gradients):
    layer, x = make("EvoNormS0"), draw(3, 8, 4, 5)
    expected = gradients(layer, x, x)
    grad(lambda x: layer(x).sum())(x)
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x, x))
    torch.testing.assert_close(gradients(layer, x, x), expected, rtol=0, atol=0)


@pytest.mark.one_impl
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "GN-ReLU"])
@pytest.mark.parametrize("records", [True, False])
def test_what_a_transform_left_behind(name, records, make, draw):
    """Its x, kept beyond its end, is still wrapped; torch's layers take it all the same."""
    layer, x, kept = make(name), draw(3, 8, 4, 5), []
    grad(lambda x: kept.append(x) or x.sum())(x)
    with torch.set_grad_enabled(records):
        torch.testing.assert_close(layer(kept[0]), layer(x), rtol=0, atol=0)


@pytest.mark.one_impl
def test_a_torch_that_does_not_tell_of_transforms(monkeypatch, make, draw):
    """Then it is as if there were none."""
    with monkeypatch.context() as patch:
        patch.delattr(torch._C._functorch, "get_dynamic_layer_stack_depth")
        without = runpy.run_path(torch_private.__file__)["is_transformed"]
    with forward_ad.dual_level():
        assert torch_private.is_transformed()
        assert not without()
    assert not torch_private.is_transformed()
