"""Any number of spatial dimensions: what holds for images holds for them, without a copy."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from evonorm_plugins import ConditionalNormAct, formulas
from evonorm_plugins import functional as F
from evonorm_plugins.planes import as_planes
from tests.layers.test_autograd import kept_for_backward

LAST = torch.channels_last_3d
# Of (N, C, ...) drawn, the tensor as it lies in memory.
LAYOUTS = {
    "vectors": ((3, 8), lambda x: x),
    "sequences": ((3, 8, 7), lambda x: x),
    "sequences, channels last": ((3, 8, 7), lambda x: x.mT.contiguous().mT),
    "volumes": ((3, 8, 2, 5, 7), lambda x: x),
    "volumes, channels last": ((3, 8, 2, 5, 7), lambda x: x.to(memory_format=LAST)),
}
VOLUMES = (3, 8, 2, 5, 3)
SHAPES = {"vectors": (3, 8), "sequences": (3, 8, 7), "volumes": VOLUMES}
FEW = ["EvoNormS0", "EvoNormB0", "GN-ReLU", "FRN"]


@pytest.fixture(params=LAYOUTS)
def laid(request, draw):
    """``laid()``: a tensor drawn, in every layout in turn."""
    shape, lay = LAYOUTS[request.param]

    def laid(**options):
        return lay(draw(*shape, **options))

    return laid


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def image_of(x):
    """A contiguous ``(N, C, P, 1)`` of the same numbers."""
    return x.reshape(*x.shape[:2], -1, 1).contiguous()


@pytest.mark.parametrize("apply_act", [True, False])
def test_as_an_image_of_the_same_numbers(every, apply_act, laid, make, gradients):
    layer = make(every, apply_act=apply_act)
    other = copy.deepcopy(layer)
    x, dy = laid(), laid()
    expected = gradients(other, image_of(x), image_of(dy))
    actual = gradients(layer, x, dy)
    for key in ("y", "x"):
        assert actual[key].stride() == x.stride(), key
        expected[key] = expected[key].reshape(x.shape)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(layer.state_dict()), dict(other.state_dict()))
    assert layer.eval()(x).stride() == x.stride()


def test_more_dimensions_than_torch_has_norms_for(make, draw):
    layer, x = make("EvoNormS0"), draw(3, 8, 2, 3, 2, 3)
    torch.testing.assert_close(layer(x), layer(image_of(x)).reshape(x.shape))


@pytest.mark.one_impl
def test_dense_inputs_are_viewed(laid):
    x = laid()
    planes = as_planes(x)
    assert planes.data_ptr() == x.data_ptr()
    last = {"memory_format": torch.channels_last}
    assert planes.is_contiguous() or planes.is_contiguous(**last)
    # As torch makes them: what looks at strides alone sees the format too.
    like = torch.empty(planes.shape, device=x.device)
    assert planes.stride() in (like.stride(), like.to(**last).stride())


def test_keeps_the_input_and_statistics_alone(own, laid, make):
    x = laid().requires_grad_()
    kept, y = kept_for_backward(make(own), x)
    assert y.requires_grad
    assert kept <= 5 * 4 * 3 * 8  # five numbers of 4 bytes per sample and channel


@pytest.mark.one_impl
@pytest.mark.parametrize("name", FEW)
def test_output_may_be_overwritten(name, laid, make, gradients):
    layer = make(name)
    x, dy = laid(), laid()
    expected = gradients(nn.Sequential(copy.deepcopy(layer), nn.ReLU()), x, dy)
    actual = gradients(nn.Sequential(layer, nn.ReLU(inplace=True)), x, dy)
    torch.testing.assert_close(actual, expected)


@pytest.mark.one_impl
@pytest.mark.parametrize("name", FEW)
def test_numerical_gradients(name, shape, make, draw):
    layer = make(name, dtype=torch.float64)
    x = draw(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, x, fast_mode=True)


FUNCTIONS = {
    "evonorm_s0": (3, {"groups": 4}), "evonorm_s1": (2, {"groups": 4}), "evonorm_s2": (2, {}),
    "evonorm_b0": (4, {}), "evonorm_b1": (3, {}), "evonorm_b2": (3, {}),
    "evonorm_b0_train": (3, {}), "evonorm_b1_train": (2, {}), "evonorm_b2_train": (2, {}),
    "channel_affine": (2, {}), "pixelnorm": (2, {}), "pixelnorm_relu": (2, {}), "frn": (3, {}),
    "tlu": (1, {}), "swish": (1, {}), "random_layer": (2, {}), "random_rej_layer": (2, {}),
    "rs_rej_layer": (3, {}), "rs_rej_layer_train": (2, {}), "relu": (0, {}),
    "group_norm_act": (3, {"act": "swish", "groups": 4}),
}  # fmt: skip


@pytest.mark.one_impl
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, laid, draw):
    number, options = FUNCTIONS[name]
    function, parameters = getattr(F, name), [draw(8).abs() for _ in range(number)]
    if number >= 2:
        parameters[:2] = draw(3, 8), draw(3, 8)  # gamma and beta of each sample
    x = laid().requires_grad_()
    found, expected = (function(z, *parameters, **options) for z in (x, image_of(x)))
    if name.endswith("_train"):
        torch.testing.assert_close(found[1], expected[1])
        found, expected = found[0], expected[0]
    torch.testing.assert_close(found, expected.reshape(x.shape), rtol=1e-4, atol=1e-5)
    assert found.stride() == x.stride()
    found.mul_(2).sum().backward()  # no view of what autograd refuses to overwrite


@pytest.mark.one_impl
def test_formulas_and_variances(laid, draw):
    x, gamma, beta, v = laid(dtype=torch.float64), draw(8), draw(8), draw(8).abs()
    for name, given in {
        "s0": {"groups": 4, "eps": 1e-5}, "b0": {"batch_var": v, "eps": 1e-5}, "affine": {},
    }.items():  # fmt: skip
        parameters = [gamma, beta, *([given.pop("batch_var")] if "batch_var" in given else [])]
        parameters += [] if name == "affine" else [v]
        formula = getattr(formulas, name)
        expected = formula(image_of(x), *parameters, **given).reshape(x.shape)
        torch.testing.assert_close(formula(x, *parameters, **given), expected)
    variance, count = F.batch_variance(x)
    torch.testing.assert_close(variance, x.transpose(0, 1).flatten(1).var(1, correction=0))
    assert count.item() == x.numel() / 8


@pytest.mark.one_impl
def test_a_function_of_what_has_no_channels(draw):
    for function in (F.evonorm_s1, F.channel_affine, F.frn):
        with pytest.raises(ValueError, match=r"x of \(8,\) is not \(N, C\)"):
            function(draw(8), draw(8), draw(8))


def test_gamma_and_beta_of_each_sample(shape, make, draw):
    layer = ConditionalNormAct(make("EvoNormS0"), 5).to(draw(1).device)
    x, condition = draw(*shape), draw(3, 5)
    expected = layer(image_of(x), condition).reshape(x.shape)
    torch.testing.assert_close(layer(x, condition), expected)


@pytest.mark.one_impl
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(every, training, shape, make, draw):
    layer = make(every).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = draw(0, *shape[1:]).requires_grad_()
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("error")
        y = layer(x)
        (y.sum() + 1).backward()
    assert y.shape == x.grad.shape == x.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())
    for key, value in layer.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormB1", "EvoNormB2", "RS + rej"])
def test_one_vector(name, make, draw, gradients):
    """A batch of one element a channel has variance 0: finite, where torch's BatchNorm raises."""
    layer, x = make(name), draw(1, 8)
    before = layer.running_var.clone()
    assert all(t.isfinite().all() for t in gradients(layer, x, draw(1, 8)).values())
    square = 0 if name.startswith("Evo") else 0.1 * x[0].square()
    torch.testing.assert_close(layer.running_var, 0.9 * before + square)


@pytest.mark.one_impl
def test_observers_see_planes(shape, make, draw):
    layer, x, seen = make("EvoNormB0"), draw(*shape), {}
    with layer.observed(lambda buffer, z: seen.update({buffer: z.clone()})):
        layer(x)
    torch.testing.assert_close(seen, {"running_var": as_planes(x)})


@pytest.mark.one_impl
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(every, dtype, make, draw, device):
    for before, size in ((nn.Linear(3, 8), ()), (nn.Conv1d(3, 8, 1), (9,))):
        model = nn.Sequential(before, make(every)).to(device)
        with torch.autocast(device.type, dtype):
            y = model(draw(4, 3, *size))
        assert (y.dtype, y.shape) == (dtype, (4, 8, *size))
        y.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_compile(shape, make, draw, gradients):
    torch.compiler.reset()
    layer = nn.Sequential(*(make(name) for name in FEW))
    options = {"backend": "aot_eager", "fullgraph": True, "dynamic": True}
    compiled = torch.compile(copy.deepcopy(layer), **options)
    for size in (shape, (5, *shape[1:])):
        x, dy = draw(*size), draw(*size)
        actual = {k.removeprefix("_orig_mod."): t for k, t in gradients(compiled, x, dy).items()}
        torch.testing.assert_close(actual, gradients(layer, x, dy), rtol=1e-3, atol=1e-4)


@pytest.mark.one_impl
def test_export_and_fx(shape, make, draw):
    layers = nn.Sequential(*(make(name) for name in FEW)).eval()
    sizes = {i: torch.export.Dim.DYNAMIC for i in range(len(shape)) if i != 1}
    program = torch.export.export(layers, (draw(*shape),), dynamic_shapes=(sizes,))
    traced = torch.fx.symbolic_trace(layers)
    assert [n.op for n in traced.graph.nodes][1:-1] == ["call_module"] * len(FEW)
    x = draw(4, 8, *(n + 1 for n in shape[2:]))
    torch.testing.assert_close(program.module()(x), layers(x))
    torch.testing.assert_close(traced(x), layers(x))


@pytest.mark.one_impl
def test_onnx(make, draw):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layers = nn.Sequential(make("EvoNormS0"), make("EvoNormB0")).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(layers, (draw(*VOLUMES),), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = draw(*VOLUMES)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.cpu().numpy()})
    expected = layers(x).detach().cpu()
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.one_impl
@pytest.mark.parametrize("name", ["EvoNormS0", "GN-ReLU", "FRN"])
def test_gradients_of_every_sample(name, shape, make, draw):
    layer, x = make(name, dtype=torch.float64), draw(*shape, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x[:, None])
    expected = grad(loss)(parameters, x)
    torch.testing.assert_close({k: g.sum(0) for k, g in found.items()}, expected)
