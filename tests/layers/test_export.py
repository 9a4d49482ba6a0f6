"""torch.compile, torch.export, torch.jit.trace and ONNX, each run at another size than it saw."""

import copy
import warnings

import pytest
import torch
from torch import nn

from evonorm_plugins import ConditionalNormAct

NAMES = ["EvoNormS0", "EvoNormS2", "EvoNormB0", "EvoNormB1", "BN-Swish", "FRN", "RS + rej"]
SEEN, OTHER = (2, 8, 4, 6), (3, 8, 7, 5)


@pytest.fixture
def model(make, device):
    """A layer after a convolution and before its own apply_act=False, in inference."""

    def model(name):
        first = nn.Conv2d(8, 8, 1).to(device)
        return nn.Sequential(first, make(name), make(name, apply_act=False)).eval()

    return model


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [("EvoNormS0", None), ("EvoNormB0", None), *((name, True) for name in NAMES)],
)
def test_compile(name, dynamic, make, draw, gradients):
    """Training without a graph break: outputs, gradients and moving statistics."""
    layer = make(name)
    compiled = torch.compile(
        copy.deepcopy(layer), backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    for shape in (SEEN, OTHER, (1, 8, 1, 1)) if "BN" not in name else (SEEN, OTHER):
        x, dy = draw(*shape), draw(*shape)
        expected = gradients(layer, x, dy)
        actual = gradients(compiled, x, dy)
        actual = {k.removeprefix("_orig_mod."): t for k, t in actual.items()}
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    state = {k.removeprefix("_orig_mod."): t for k, t in compiled.state_dict().items()}
    torch.testing.assert_close(state, dict(layer.state_dict()))


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_compile_for_inference(name, model, draw):
    layers = model(name)
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in (SEEN, OTHER):
            x = draw(*shape)
            torch.testing.assert_close(compiled(x), layers(x))


@pytest.mark.one_impl
@pytest.mark.parametrize("name", NAMES)
def test_export(name, model, draw):
    layers = model(name)
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    program = torch.export.export(layers, (draw(*SEEN),), dynamic_shapes=(sizes,))
    for shape in (OTHER, SEEN):
        x = draw(*shape)
        torch.testing.assert_close(program.module()(x), layers(x))


@pytest.mark.one_impl
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("gradients_on", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_trace(name, gradients_on, model, draw):
    layers = model(name)
    with torch.set_grad_enabled(gradients_on):
        traced = torch.jit.trace(layers, draw(*SEEN))  # traces twice and compares the graphs
    for shape in (OTHER, SEEN, (1, 8, 1, 1)):
        x = draw(*shape)
        torch.testing.assert_close(traced(x), layers(x))


@pytest.mark.one_impl
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
def test_trace_in_training(make, draw):
    """Holds plain operations, whose gradients are those of the layer."""
    layer = make("EvoNormB0")
    seen = draw(*SEEN).requires_grad_()
    traced = torch.jit.trace(copy.deepcopy(layer), seen, check_trace=False)
    assert "^_" not in str(traced.inlined_graph)  # such a node would call back into Python
    x = draw(*SEEN)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    traced(a).square().sum().backward()
    layer(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.one_impl
@pytest.mark.parametrize("name", NAMES)
def test_trace_of_an_empty_batch(name, model, draw):
    """The example may hold no sample, and so may what comes later."""
    layers = model(name)
    x, nothing = draw(*SEEN), draw(0, *SEEN[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in (x, nothing):
            traced = torch.jit.trace(layers, example)
            torch.testing.assert_close(traced(x), layers(x))
            assert traced(nothing).shape == nothing.shape


@pytest.mark.one_impl
def test_torch_fx_sees_one_operation(every, make, draw):
    layers = nn.Sequential(make(every), make(every, apply_act=False)).eval()
    traced = torch.fx.symbolic_trace(layers)
    assert [(n.op, n.target) for n in traced.graph.nodes][1:-1] == [
        ("call_module", "0"),
        ("call_module", "1"),
    ]
    x = draw(*SEEN)
    torch.testing.assert_close(traced(x), layers(x))


@pytest.mark.one_impl
def test_torch_fx_and_gamma_and_beta_of_each_call(make, draw):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = make("EvoNormS0").release_affine()
            self.conditional = ConditionalNormAct(make("EvoNormS1"), 3)

        def forward(self, x, weight, bias, condition):
            return self.conditional(self.norm(x, weight, bias), condition)

    model = Given()
    given = draw(*SEEN), draw(2, 8), draw(2, 8), draw(2, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*given), model(*given))


@pytest.mark.one_impl
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormS2", "EvoNormB0", "EvoNormB1"])
def test_onnx(name, model, draw, device):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layers = model(name)
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            layers, (draw(*SEEN),), dynamo=True, dynamic_shapes=(sizes,), verbose=False
        )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    assert given.shape[1] == 8
    assert all(isinstance(given.shape[i], str) for i in (0, 2, 3))
    for shape in (OTHER, SEEN):
        x = draw(*shape)
        (y,) = session.run(None, {given.name: x.cpu().numpy()})
        expected = layers(x).detach().cpu()
        torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-4, atol=1e-5)
