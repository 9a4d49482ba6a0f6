"""What every layer promises, whatever its formula; see ``evonorm_plugins.layers.base``."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from evonorm_plugins import get_norm_act, list_norm_acts
from evonorm_plugins.layers.candidates import UNNAMED

WITH_V = ["EvoNormB0", "EvoNormS0", "SyncEvoNormB0", "BN-PReLU", "BN-Swish", "GN-Swish", "FRN"]
WITH_RUNNING_VAR = [n for n in list_norm_acts() if "EvoNormB" in n or n == "RS + rej"]
TORCH = [n for n in list_norm_acts() if n[:3] in ("BN-", "GN-", "LN-")]
AFFINE = [n for n in list_norm_acts() if "EvoNorm" in n or "Random" in n or n == "RS + rej"]
AFFINE += UNNAMED
WITH_GROUPS = [n for n in list_norm_acts() if n.startswith(("EvoNormS", "GN-", "Candidate-S"))]
WITH_MOMENTUM = [
    *WITH_RUNNING_VAR,
    *(n for n in list_norm_acts() if n.startswith(("BN", "Candidate-B"))),
]
SHAPES = {
    "odd": (3, 8, 5, 7),
    "row": (2, 8, 1, 9),
    "1x1": (4, 8, 1, 1),
    "one sample": (1, 8, 3, 3),
    "one element": (1, 8, 1, 1),
}


@pytest.mark.parametrize("name", [n for n in list_norm_acts() if n not in TORCH])
def test_keys_and_initial_values(name):
    layer = get_norm_act(name, 6)
    expected = {"weight": torch.ones(6), "bias": torch.zeros(6)}
    if name in WITH_V:
        expected["v"] = torch.zeros(6) if name == "FRN" else torch.ones(6)
    if name in WITH_RUNNING_VAR:
        expected["running_var"] = torch.ones(6)
    if name.startswith("Candidate-B"):  # a graph's has the number of its node
        expected["running_var6" if name == "Candidate-B3" else "running_var4"] = torch.ones(6)
    torch.testing.assert_close(dict(layer.state_dict()), expected)
    own = {key for key in expected if not key.startswith("running_var")}
    assert own == {k for k, _ in layer.named_parameters()}


@pytest.mark.parametrize("name", TORCH)
def test_keys_of_torchs_norms(name):
    keys = {"norm.weight", "norm.bias"} | ({"v"} if name in WITH_V else set())
    if name.startswith("BN"):
        keys |= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(get_norm_act(name, 6).state_dict()) == keys
    assert set(get_norm_act(name, 6, apply_act=False).state_dict()) == keys - {"v"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype_of_parameters(every, device, dtype):
    layer = get_norm_act(every, 6, device=device, dtype=dtype)
    tensors = [t for t in layer.state_dict().values() if t.is_floating_point()]
    assert {(t.device.type, t.dtype) for t in tensors} == {(device.type, dtype)}


def test_values_come_later(every, make, device):
    """On the meta device nothing has a value, until ``to_empty()`` and ``reset_parameters()``."""
    for built in (
        get_norm_act(every, 6, device="meta"),
        get_norm_act(every, 6, device="meta", apply_act=False),
    ):
        assert all(t.is_meta for t in built.state_dict().values())
        built.to_empty(device=device)
        for tensor in built.state_dict().values():
            tensor.fill_(3)
        for module in built.modules():
            module.reset_parameters()
        fresh = get_norm_act(every, 6, apply_act=built.apply_act).to(device)
        torch.testing.assert_close(dict(built.state_dict()), dict(fresh.state_dict()))


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_a_layer_without_values_does_not_compute(name, draw):
    layer = get_norm_act(name, 8, device="meta")
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        layer(draw(2, 8, 3, 3))


@pytest.mark.parametrize("apply_act", [True, False])
def test_checkpoints_of_timm_load(evonorm, apply_act, draw, device):
    timm = pytest.importorskip("timm.layers")
    theirs = getattr(timm, f"EvoNorm2d{evonorm[-2:]}")(64, apply_act=apply_act).to(device)
    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():
            tensor.copy_(draw(64).abs() if key == "running_var" else draw(64))
    ours = get_norm_act(evonorm, 64, apply_act=apply_act, eps=theirs.eps).to(device)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = draw(2, 64, 5, 7)
    expected = theirs.eval()(x)
    torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-5, atol=1e-5)
    # eps is in no checkpoint, and that of timm's B0 is not the paper's.
    ours.eps = get_norm_act(evonorm, 64).eps
    differs = evonorm == "EvoNormB0" and apply_act
    assert (theirs.eps, ours.eps) == (1e-3 if evonorm == "EvoNormB0" else 1e-5, 1e-5)
    assert torch.allclose(ours(x), expected, rtol=1e-5, atol=1e-5) == (not differs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", AFFINE)
def test_without_activation_is_affine(name, training, make, draw):
    layer = make(name, apply_act=False).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = draw(2, 8, 3, 5, scale=1e3)
    expected = x * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)
    assert layer.v is None
    assert set(before) <= {"weight", "bias", "running_var"}
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


def test_without_activation_keeps_values(every, device, draw):
    layer = get_norm_act(every, 6).to(device).eval()
    values = {n: torch.rand_like(t) for n, t in layer.state_dict().items() if t.is_floating_point()}
    layer.load_state_dict(values, strict=False)
    layer.requires_grad_(False)
    other = layer.without_activation()
    kept = {n: t for n, t in other.state_dict().items() if t.is_floating_point()}
    assert len(kept) >= 2
    torch.testing.assert_close(kept, {n: values[n] for n in kept}, rtol=0, atol=0)
    assert not any(p.requires_grad for p in other.parameters())
    assert not other.training
    assert all(p.requires_grad for p in layer.requires_grad_().without_activation().parameters())
    # Copies: what becomes of one does not change the other.
    layer.load_state_dict({n: t + 1 for n, t in values.items()}, strict=False)
    torch.testing.assert_close(kept, {n: values[n] for n in kept}, rtol=0, atol=0)


def test_without_activation_stays_frozen(device):
    layer = get_norm_act("EvoNormB0", 6).to(device)
    assert layer.freeze().without_activation().frozen


def test_without_activation_keeps_class_and_options(every, device):
    given = {"eps": 0.01}
    if every in WITH_GROUPS:
        given["groups"] = 2
    if every in WITH_MOMENTUM:
        given["momentum"] = 0.3
    layer = get_norm_act(every, 6, dtype=torch.float64, **given).to(device)
    other = layer.without_activation()
    assert type(other) is type(layer)
    assert not other.apply_act
    assert other.v is None
    assert other.num_features == 6
    assert given.items() <= other.options().items()
    assert other.options() == layer.options()
    tensors = [t for t in other.state_dict().values() if t.is_floating_point()]
    assert {(t.device.type, t.dtype) for t in tensors} == {(device.type, torch.float64)}
    for key, value in given.items():
        assert f"{key}={value}" in repr(other)
    assert "apply_act=False" in repr(other)


@pytest.mark.numbers
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size(own, shape, make, draw, gradients):
    """In float32, against the same layer in float64: a size of 1 has no special case."""
    layer = make(own)
    x, dy = draw(*SHAPES[shape]), draw(*SHAPES[shape])
    expected = gradients(copy.deepcopy(layer).double(), x.double(), dy.double())
    actual = gradients(layer, x, dy)
    assert all(t.isfinite().all() for t in [*actual.values(), *layer.state_dict().values()])
    for key in expected:
        error = (actual[key] - expected[key]).abs().max().item()
        assert error <= 1e-5 * max(1, expected[key].abs().max().item()), key


@pytest.mark.numbers
def test_same_numbers_from_any_memory_layout(every, impl, make, draw, gradients):
    layer = make(every)
    x, dy = draw(3, 8, 5, 7), draw(3, 8, 5, 7)
    expected = gradients(copy.deepcopy(layer), x, dy)
    every_other = torch.stack([x, draw(3, 8, 5, 7)], -1)[..., 0]
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    last = x.to(memory_format=torch.channels_last)
    assert not any(t.is_contiguous() for t in (every_other, transposed, last))
    for other in (every_other, transposed, last):
        actual = gradients(copy.deepcopy(layer), other, dy)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        if other is last and impl == "triton":  # for the others see the next test
            assert actual["y"].stride() == actual["x"].stride() == last.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("apply_act", [True, False])
def test_keeps_layout_and_dtype(every, apply_act, layout, dtype, make, draw, gradients):
    layer = make(every, apply_act=apply_act)
    x = draw(3, 8, 5, 7, dtype=dtype).to(memory_format=layout)
    result = gradients(layer, x, draw(3, 8, 5, 7, dtype=dtype).to(memory_format=layout))
    for key in ("y", "x"):
        assert result[key].dtype == dtype
        assert result[key].stride() == x.stride(), key
    assert layer.eval()(x).stride() == x.stride()


def rounding_error(t, dtype):
    return (t.to(dtype).double() - t).abs().max().item()


@pytest.mark.numbers
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(own, dtype, training, impl, make, draw, gradients):
    """No result is further from float64's than twice what rounding it to the dtype costs.

    In plain torch the gradient of x is a sum of two in the B series, each rounded: twice as far
    there. Triton's interpreter cuts bfloat16 off where a GPU rounds.
    """
    layer = make(own).train(training)
    x, dy = draw(4, 8, 9, 7, dtype=dtype), draw(4, 8, 9, 7, dtype=dtype)
    exact = gradients(copy.deepcopy(layer).double(), x.double(), dy.double())
    actual = gradients(layer, x, dy)
    for key, expected in exact.items():
        assert actual[key].dtype == (dtype if key in "xy" else torch.float32)
        error = (actual[key].double() - expected).abs().max().item()
        allowed = 2 * rounding_error(expected, actual[key].dtype)
        plain = impl == "torch" or own == "RS + rej"
        allowed *= 2 if plain and key == "x" and training and own in WITH_RUNNING_VAR else 1
        cut_off = impl == "triton" and dtype == torch.bfloat16 and x.device.type == "cpu"
        allowed *= 2 if cut_off else 1
        assert error <= allowed + 2e-6 * expected.abs().max().item(), key


@pytest.mark.numbers
def test_statistics_of_a_far_mean(evonorm, make, draw):
    """Mean 1e3, standard deviation 1e-2: the mean of squares minus the squared mean is noise."""
    layer = make(evonorm)
    x = draw(4, 8, 9, 7, scale=1e-2, shift=1e3)
    reference = copy.deepcopy(layer).double()
    actual, expected = layer(x), reference(x.double())
    # rms - x of B2 is a difference of two such numbers, of which float32 leaves 3 digits.
    tolerance = 1e-2 if evonorm == "EvoNormB2" else 1e-4
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance
    if hasattr(layer, "running_var"):
        torch.testing.assert_close(layer.running_var.double(), reference.running_var)


@pytest.mark.numbers
def test_squares_that_overflow_float16(own, make, draw):
    layer = make(own)
    x = draw(4, 8, 5, 7, dtype=torch.float16, scale=3000)
    assert x.square().isinf().any()
    expected = copy.deepcopy(layer).double()(x.double())
    actual = layer(x)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected, rtol=2e-3, atol=2e-3)
    if own in WITH_RUNNING_VAR:
        assert (layer.running_var > 1e5).all()


@pytest.mark.numbers
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("apply_act", [True, False])
def test_empty_batch(every, apply_act, training, layout, make, draw):
    layer = make(every, apply_act=apply_act).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = draw(0, 8, 5, 7).to(memory_format=layout).requires_grad_()
    # Anomaly detection raises where a backward pass meets NaN, even one that reaches no result.
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("error")
        y = layer(x)
        (y.sum() + 1).backward()
    assert y.shape == x.shape
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter))
    after = dict(layer.state_dict())
    after.pop("norm.num_batches_tracked", None)
    before.pop("norm.num_batches_tracked", None)
    torch.testing.assert_close(after, dict(before), rtol=0, atol=0)


def test_empty_batch_twice_differentiated(own, make, draw):
    layer = make(own)
    x = draw(0, 8, 5, 7).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_empty_batch_before_a_full_one(own, make, draw):
    """A head may see no region on one feature level and many on the next."""
    layer = make(own)
    alone = copy.deepcopy(layer)
    x = draw(3, 8, 5, 7)
    (layer(x[:0]).sum() + layer(x).square().sum()).backward()
    alone(x).square().sum().backward()
    for a, b in zip(layer.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_groups_that_do_not_divide(name, make, draw):
    """48 channels, 32 groups: 24 of 2 channels, as in the authors' code."""
    wanted, used = make(name, 48, groups=32), make(name, 48, groups=24)
    used.load_state_dict(wanted.state_dict())
    x = draw(2, 48, 3, 3)
    assert torch.equal(wanted(x), used(x))
    # As given, so that the options build the layer for another number of channels as well.
    assert wanted.options()["groups"] == 32


def test_copies(every, make, draw):
    layer = make(every)
    x = draw(3, 8, 5, 7)
    layer(x)  # so that moving statistics are not those of the start
    state = io.BytesIO()
    torch.save(layer.state_dict(), state)
    state.seek(0)
    loaded = make(every)
    loaded.load_state_dict(torch.load(state, weights_only=True), strict=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert torch.equal(other.eval()(x), layer.eval()(x))
        assert not {p.data_ptr() for p in other.parameters()} & {
            p.data_ptr() for p in layer.parameters()
        }


def test_module_of_another_dtype(every, make, draw):
    layer = make(every)
    x = draw(3, 8, 5, 7)
    expected = copy.deepcopy(layer)(x)
    double = layer.double()(x.double())
    torch.testing.assert_close(double, expected.double(), rtol=1e-4, atol=1e-5)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(every, dtype, make, draw, device):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), make(every)).to(device)
    x = draw(2, 3, 9, 9)
    expected = copy.deepcopy(model)
    expected(x).square().mean().backward()
    with torch.autocast(device.type, dtype):
        y = model(x)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        limit = 0.1 * b.grad.abs().max().item() + 1e-2
        assert (a.grad - b.grad).abs().max().item() < limit
