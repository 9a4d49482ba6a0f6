"""What every layer promises, whatever its formula; see ``evonorm_plugins.layers.base``."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from evonorm_plugins import convert_sync_evonorm, get_norm_act, list_norm_acts

EVONORMS = ["EvoNormB0", "EvoNormB1", "EvoNormB2", "EvoNormS0", "EvoNormS1", "EvoNormS2"]
SYNC = ["SyncEvoNormB0", "SyncEvoNormB1", "SyncEvoNormB2"]
FOUND_BY_SEARCH = ["Random", "Random + rej", "RS + rej"]
# Formulas of our own, and layers made of torch's modules. Alone, SYNC are EVONORMS: test_sync.py.
OWN = [*EVONORMS, "FRN", "PixelNorm-ReLU", *FOUND_BY_SEARCH]
TORCH = [name for name in list_norm_acts() if name not in (*OWN, *SYNC)]
AFFINE = [*EVONORMS, *SYNC, *FOUND_BY_SEARCH]  # their apply_act=False
WITH_V = ["EvoNormB0", "EvoNormS0", "SyncEvoNormB0", "BN-PReLU", "BN-Swish", "GN-Swish", "FRN"]
B_SERIES = ["EvoNormB0", "EvoNormB1", "EvoNormB2", *SYNC, "RS + rej"]
GROUPED = ["EvoNormS0", "EvoNormS1", "EvoNormS2", "GN-ReLU", "GN-Swish-1", "GN-Swish"]
SHAPES = {
    "odd": (3, 8, 5, 7),
    "row": (2, 8, 1, 9),
    "1x1": (4, 8, 1, 1),
    "one sample": (1, 8, 3, 3),
    "one element": (1, 8, 1, 1),
}


def options(name):
    """Small groups, so that a group is neither a channel nor everything."""
    return {"groups": 4} if name in GROUPED else {}


def gradients(layer, x, dy):
    """Output and all gradients, by name."""
    x = x.detach().requires_grad_()
    y = layer(x)
    parameters = dict(layer.named_parameters())
    return {
        "y": y.detach(),
        **dict(
            zip(
                ["x", *parameters],
                torch.autograd.grad(y, [x, *parameters.values()], dy),
                strict=True,
            )
        ),
    }


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            actual[key], expected[key], **tolerance, msg=lambda m, key=key: f"{key}: {m}"
        )


# Keys


@pytest.mark.parametrize("name", [*OWN, *SYNC])
def test_parameters_start_as_the_identity_would(name):
    layer = get_norm_act(name, 6)
    expected = {"weight": torch.ones(6), "bias": torch.zeros(6)}
    if name in WITH_V:
        expected["v"] = torch.zeros(6) if name == "FRN" else torch.ones(6)
    if name in B_SERIES:
        expected["running_var"] = torch.ones(6)
    assert_same(dict(layer.state_dict()), expected)
    assert [k for k, _ in layer.named_buffers()] == ["running_var"] * (name in B_SERIES)


@pytest.mark.parametrize("name", TORCH)
def test_keys_of_torchs_norms(name):
    keys = {"norm.weight", "norm.bias"} | ({"v"} if name in WITH_V else set())
    if name.startswith("BN"):
        keys |= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(get_norm_act(name, 6).state_dict()) == keys
    assert set(get_norm_act(name, 6, apply_act=False).state_dict()) == keys - {"v"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", list_norm_acts())
def test_device_and_dtype_of_parameters(name, device, dtype):
    layer = get_norm_act(name, 6, device=device, dtype=dtype)
    tensors = [t for t in layer.state_dict().values() if t.is_floating_point()]
    assert {(t.device.type, t.dtype) for t in tensors} == {(device.type, dtype)}
    assert {t.device.type for t in get_norm_act(name, 6, device="meta").state_dict().values()} == {
        "meta"
    }


@pytest.mark.parametrize("series", EVONORMS)
@pytest.mark.parametrize("apply_act", [True, False])
def test_checkpoints_of_timm_load(series, apply_act, draw, device):
    timm = pytest.importorskip("timm.layers")
    theirs = getattr(timm, f"EvoNorm2d{series[-2:]}")(64, apply_act=apply_act, eps=1e-3).to(device)
    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():
            tensor.copy_(draw(64).abs() if key == "running_var" else draw(64))
    ours = get_norm_act(series, 64, apply_act=apply_act, eps=1e-3).to(device)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = draw(2, 64, 5, 7)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


# apply_act=False


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
    assert_same(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("name", list_norm_acts())
def test_without_activation_keeps_class_and_options(name, device):
    given = {"eps": 0.01} | ({"groups": 2} if name in GROUPED else {})
    if name in B_SERIES or name.startswith("BN"):
        given["momentum"] = 0.3
    layer = get_norm_act(name, 6, dtype=torch.float64, **given).to(device)
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


# Numbers


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_numerical_gradients(name, training, make, draw):
    layer = make(name, 4, dtype=torch.float64, **({"groups": 2} if name in GROUPED else {}))
    layer.train(training)
    x = draw(2, 4, 2, 3, dtype=torch.float64).requires_grad_()

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(keys, parameters, strict=True)), x)

    keys = [k for k, _ in layer.named_parameters()]
    args = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(function, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, args, fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OWN)
def test_any_size(name, shape, make, draw):
    """In float32, against the same layer in float64: a size of 1 has no special case."""
    layer = make(name, **options(name))
    x, dy = draw(*SHAPES[shape]), draw(*SHAPES[shape])
    expected = gradients(copy.deepcopy(layer).double(), x.double(), dy.double())
    actual = gradients(layer, x, dy)
    assert all(t.isfinite().all() for t in [*actual.values(), *layer.state_dict().values()])
    for key in expected:
        error = (actual[key] - expected[key]).abs().max().item()
        assert error <= 1e-5 * max(1, expected[key].abs().max().item()), key


@pytest.mark.parametrize("name", list_norm_acts())
def test_same_numbers_from_any_memory_layout(name, make, draw):
    layer = make(name, **options(name))
    x, dy = draw(3, 8, 5, 7), draw(3, 8, 5, 7)
    expected = gradients(copy.deepcopy(layer), x, dy)
    every_other = torch.stack([x, draw(3, 8, 5, 7)], -1)[..., 0]
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    last = x.to(memory_format=torch.channels_last)
    assert not any(t.is_contiguous() for t in (every_other, transposed, last))
    for other in (every_other, transposed, last):
        actual = gradients(copy.deepcopy(layer), other, dy)
        assert_same(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", list_norm_acts())
def test_keeps_layout_and_dtype(name, apply_act, layout, dtype, make, draw):
    layer = make(name, apply_act=apply_act, **options(name))
    x = draw(3, 8, 5, 7, dtype=dtype).to(memory_format=layout)
    result = gradients(layer, x, draw(3, 8, 5, 7, dtype=dtype).to(memory_format=layout))
    for key in ("y", "x"):
        assert result[key].dtype == dtype
        assert result[key].stride() == x.stride(), key
    assert layer.eval()(x).stride() == x.stride()


def rounding_error(t, dtype):
    return (t.to(dtype).double() - t).abs().max().item()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OWN)
def test_low_precision(name, dtype, training, make, draw):
    """No result is further from float64's than twice what rounding it to the dtype costs.

    The gradient of x is a sum of two in the B series, each rounded: twice as far there.
    """
    layer = make(name, **options(name)).train(training)
    x, dy = draw(4, 8, 9, 7, dtype=dtype), draw(4, 8, 9, 7, dtype=dtype)
    exact = gradients(copy.deepcopy(layer).double(), x.double(), dy.double())
    actual = gradients(layer, x, dy)
    for key, expected in exact.items():
        assert actual[key].dtype == (dtype if key in "xy" else torch.float32)
        error = (actual[key].double() - expected).abs().max().item()
        allowed = 2 * rounding_error(expected, actual[key].dtype)
        allowed *= 2 if key == "x" and training and name in B_SERIES else 1
        assert error <= allowed + 2e-6 * expected.abs().max().item(), key


@pytest.mark.parametrize("name", EVONORMS)
def test_statistics_of_a_far_mean(name, make, draw):
    """Mean 1e3, standard deviation 1e-2: the mean of squares minus the squared mean is noise."""
    layer = make(name, **options(name))
    x = draw(4, 8, 9, 7, scale=1e-2, shift=1e3)
    reference = copy.deepcopy(layer).double()
    actual, expected = layer(x), reference(x.double())
    # rms - x of B2 is a difference of two such numbers, of which float32 leaves 3 digits.
    tolerance = 1e-2 if name == "EvoNormB2" else 1e-4
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance
    if hasattr(layer, "running_var"):
        torch.testing.assert_close(layer.running_var.double(), reference.running_var)


@pytest.mark.parametrize("name", OWN)
def test_squares_that_overflow_float16(name, make, draw):
    layer = make(name, **options(name))
    x = draw(4, 8, 5, 7, dtype=torch.float16, scale=3000)
    assert x.square().isinf().any()
    expected = copy.deepcopy(layer).double()(x.double())
    actual = layer(x)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected, rtol=2e-3, atol=2e-3)
    if name in B_SERIES:
        assert (layer.running_var > 1e5).all()


# Empty batches


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", list_norm_acts())
def test_empty_batch(name, apply_act, training, layout, make, draw):
    layer = make(name, apply_act=apply_act, **options(name)).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = draw(0, 8, 5, 7).to(memory_format=layout).requires_grad_()
    with warnings.catch_warnings():
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
    assert_same(after, dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("name", OWN)
def test_empty_batch_twice_differentiated(name, make, draw):
    layer = make(name, **options(name))
    x = draw(0, 8, 5, 7).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", OWN)
def test_empty_batch_before_a_full_one(name, make, draw):
    """A head may see no region on one feature level and many on the next."""
    layer = make(name, **options(name))
    alone = copy.deepcopy(layer)
    x = draw(3, 8, 5, 7)
    (layer(x[:0]).sum() + layer(x).square().sum()).backward()
    alone(x).square().sum().backward()
    for a, b in zip(layer.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# What autograd keeps


def kept_for_backward(layer, x):
    """Bytes autograd keeps besides x and the parameters, by storage."""
    known = {t.untyped_storage().data_ptr() for t in [x, *layer.parameters()]}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    return sum(kept.values()), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_keeps_the_input_and_statistics_alone(name, apply_act, dtype, make, draw):
    layer = make(name, apply_act=apply_act, **options(name))
    x = draw(4, 8, 16, 16, dtype=dtype).requires_grad_()
    kept, y = kept_for_backward(layer, x)
    assert y.requires_grad
    # A few numbers per channel; the input is 8,192 numbers.
    assert kept <= 4 * 8 * 4


@pytest.mark.parametrize(
    "change", [torch.relu_, lambda y: y.mul_(0.5), lambda y: y.add_(1)], ids=["relu", "mul", "add"]
)
@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_output_may_be_overwritten(name, apply_act, change, make, draw):
    layer = make(name, apply_act=apply_act, **options(name))
    x, dy = draw(3, 8, 5, 7), draw(3, 8, 5, 7)
    expected = gradients(lambda_module(layer, lambda y: change(y.clone())), x, dy)
    actual = gradients(lambda_module(layer, change), x, dy)
    assert_same(actual, expected)
    with torch.no_grad():
        y = layer.eval()(x)
        assert torch.equal(change(y), change(layer(x).clone()))


@pytest.mark.parametrize("name", TORCH)
def test_overwritten_output_of_torchs_norms_is_right_or_refused(name, make, draw):
    """torch's ReLU keeps its output, so there autograd refuses; no gradient is ever wrong."""
    layer = make(name, **options(name))
    x, dy = draw(3, 8, 5, 7), draw(3, 8, 5, 7)
    expected = gradients(lambda_module(layer, lambda y: y.clone().mul_(2)), x, dy)
    if name.endswith("-ReLU"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(lambda_module(layer, lambda y: y.mul_(2)), x, dy)
    else:
        actual = gradients(lambda_module(layer, lambda y: y.mul_(2)), x, dy)
        assert_same(actual, expected)


class lambda_module(nn.Module):  # noqa: N801
    """A layer and what is done to its output; without the statistics of earlier calls."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self.change = copy.deepcopy(layer), change

    def forward(self, x):
        return self.change(self.layer(x))


@pytest.mark.parametrize("name", OWN)
def test_overwritten_input_is_refused(name, make, draw):
    layer = make(name, **options(name))
    x = draw(3, 8, 5, 7).requires_grad_() * 1
    y = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", OWN)
def test_backward_twice_through_one_graph(name, make, draw):
    layer = make(name, **options(name))
    x = draw(3, 8, 5, 7).requires_grad_()
    y, dy = layer(x), draw(3, 8, 5, 7)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y, x, dy)[0])


@pytest.mark.parametrize("name", list_norm_acts())
def test_creating_a_graph_changes_no_gradient(name, make, draw):
    layer = make(name, **options(name))
    x = draw(3, 8, 5, 7).requires_grad_()
    y, dy = layer(x), draw(3, 8, 5, 7)
    inputs = [x, *layer.parameters()]
    plain = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    graph = torch.autograd.grad(y, inputs, dy, create_graph=True)
    torch.testing.assert_close([g.detach() for g in graph], list(plain))


@pytest.mark.parametrize("name", OWN)
def test_gradient_penalty(name, make, draw):
    """The gradient of a gradient's norm, as a numerical derivative along one direction."""
    layer = make(name, dtype=torch.float64, **options(name))
    x, direction = draw(3, 8, 3, 4, dtype=torch.float64), draw(3, 8, 3, 4, dtype=torch.float64)

    def penalty(x):
        x = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return dx.square().sum(), x

    value, x = penalty(x)
    (gradient,) = torch.autograd.grad(value, x)
    step = 1e-6
    above, below = penalty(x + step * direction)[0], penalty(x - step * direction)[0]
    expected = (above - below) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)


# Copies and mixed precision


@pytest.mark.parametrize("name", list_norm_acts())
def test_copies(name, make, draw):
    layer = make(name, **options(name))
    x = draw(3, 8, 5, 7)
    layer(x)  # so that moving statistics are not those of the start
    state = io.BytesIO()
    torch.save(layer.state_dict(), state)
    state.seek(0)
    loaded = make(name, **options(name))
    loaded.load_state_dict(torch.load(state, weights_only=True), strict=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert torch.equal(other.eval()(x), layer.eval()(x))
        assert not {p.data_ptr() for p in other.parameters()} & {
            p.data_ptr() for p in layer.parameters()
        }


@pytest.mark.parametrize("name", list_norm_acts())
def test_module_of_another_dtype(name, make, draw):
    layer = make(name, **options(name))
    x = draw(3, 8, 5, 7)
    expected = copy.deepcopy(layer)(x)
    assert_same({"y": layer.double()(x.double())}, {"y": expected.double()}, rtol=1e-4, atol=1e-5)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list_norm_acts())
def test_autocast(name, dtype, make, draw, device):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), make(name, **options(name))).to(device)
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


# Bad input


@pytest.mark.parametrize("name", list_norm_acts())
def test_bad_input(name, make, device):
    layer = make(name, **options(name))
    kind = type(layer).__name__
    for shape in [(8, 5, 7), (2, 8), (2, 8, 5, 7, 1), ()]:
        with pytest.raises(ValueError, match=rf"{kind} takes \(N, C, H, W\)") as error:
            layer(torch.zeros(shape, device=device))
        assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match=rf"{kind}\(8\) got 5 channels in \(2, 5, 8, 8\)"):
        layer(torch.zeros(2, 5, 8, 8, device=device))
    for dtype in (torch.int64, torch.uint8, torch.complex64):
        with pytest.raises(TypeError, match=f"{kind} takes a floating point tensor, got {dtype}"):
            layer(torch.zeros(2, 8, 5, 7, device=device, dtype=dtype))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "64", None])
@pytest.mark.parametrize("name", list_norm_acts())
def test_bad_number_of_channels(name, value):
    with pytest.raises(ValueError, match=f"num_features={value!r} must be an integer"):
        get_norm_act(name, value)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "32", None])
@pytest.mark.parametrize("name", GROUPED)
def test_bad_groups(name, value):
    with pytest.raises(ValueError, match=f"groups={value!r} must be an integer"):
        get_norm_act(name, 64, groups=value)


@pytest.mark.parametrize("value", [0, -1e-5, float("nan"), "1e-5", None, True])
@pytest.mark.parametrize("name", list_norm_acts())
def test_bad_eps(name, value):
    with pytest.raises(ValueError, match=f"eps={value!r} must be"):
        get_norm_act(name, 64, eps=value)


@pytest.mark.parametrize("value", [2, -0.1, float("nan"), "0.1", None, True])
@pytest.mark.parametrize(
    "name", [name for name in list_norm_acts() if name in B_SERIES or name.startswith("BN")]
)
def test_bad_momentum(name, value):
    with pytest.raises(ValueError, match=f"momentum={value!r} must be"):
        get_norm_act(name, 64, momentum=value)


def test_groups_that_do_not_divide(make, draw):
    """48 channels, 32 groups: 24 of 2 channels, as in the authors' code."""
    x = draw(2, 48, 3, 3)
    for name in GROUPED:
        wanted = make(name, 48, groups=32)
        used = get_norm_act(name, 48, groups=24).to(x.device)
        used.load_state_dict(wanted.state_dict())
        assert torch.equal(wanted(x), used(x))
        if name.startswith("Evo"):
            assert wanted.groups == 32  # as given: the layer can be built again from its options


def test_conversion_to_sync_leaves_the_other_layers(make):
    model = nn.Sequential(*(make(name) for name in list_norm_acts()))
    classes = [type(m) for m in convert_sync_evonorm(model)]
    expected = [f"Sync{n}" if n in EVONORMS[:3] else n for n in list_norm_acts()]
    assert classes == [type(get_norm_act(n, 8)) for n in expected]
