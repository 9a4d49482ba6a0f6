"""torch.compile, torch.export, torch.jit.trace and ONNX, each run at another size than it saw."""

import copy
import warnings

import pytest
import torch
from torch import nn

from evonorm_plugins import ConditionalNormAct

EVONORMS = ["EvoNormS0", "EvoNormS2", "EvoNormB0", "EvoNormB1"]
NAMES = [*EVONORMS, "BN-Swish", "FRN", "RS + rej"]
SEEN, OTHER = (2, 8, 4, 6), (3, 8, 7, 5)


class SideBySide(nn.Module):
    """What every layer makes of one tensor, ``(layers, N, C, H, W)``: captured once for all."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return torch.stack([layer(x) for layer in self.layers])


@pytest.fixture
def model(make, device):
    """Layers after a convolution, each before its own apply_act=False, in inference."""

    def model(names):
        pairs = [nn.Sequential(make(n), make(n, apply_act=False)) for n in names]
        return nn.Sequential(nn.Conv2d(8, 8, 1).to(device), SideBySide(pairs)).eval()

    return model


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("names", "dynamic"),
    [
        pytest.param(["EvoNormS0", "EvoNormB0"], None, id="static"),
        pytest.param(EVONORMS, True, id="dynamic"),
        pytest.param(["FRN", "RS + rej"], True, id="others", marks=pytest.mark.one_impl),
        pytest.param(["BN-Swish"], True, id="torch's norm", marks=pytest.mark.one_impl),
    ],
)
def test_compile(names, dynamic, make, draw, gradients):
    """Training without a graph break: outputs, gradients and moving statistics."""
    layer = SideBySide(make(name) for name in names)
    compiled = torch.compile(
        copy.deepcopy(layer), backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    # Batch normalization refuses a single element.
    for shape in (SEEN, OTHER) if "BN-Swish" in names else (SEEN, OTHER, (1, 8, 1, 1)):
        x, dy = draw(*shape), draw(len(names), *shape)
        expected = gradients(layer, x, dy)
        actual = gradients(compiled, x, dy)
        actual = {k.removeprefix("_orig_mod."): t for k, t in actual.items()}
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    state = {k.removeprefix("_orig_mod."): t for k, t in compiled.state_dict().items()}
    torch.testing.assert_close(state, dict(layer.state_dict()))


def test_compile_for_inference(model, draw):
    layers = model(["EvoNormS0", "EvoNormB0"])
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in (SEEN, OTHER):
            x = draw(*shape)
            torch.testing.assert_close(compiled(x), layers(x))


@pytest.mark.one_impl
def test_export(model, draw):
    layers = model(NAMES)
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    program = torch.export.export(layers, (draw(*SEEN),), dynamic_shapes=(sizes,))
    for shape in (OTHER, SEEN):
        x = draw(*shape)
        torch.testing.assert_close(program.module()(x), layers(x))


@pytest.mark.one_impl
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("gradients_on", [True, False])
def test_trace(gradients_on, model, draw):
    layers = model(NAMES)
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
def test_trace_of_an_empty_batch(model, draw):
    """The example may hold no sample, and so may what comes later."""
    layers = model(NAMES)
    x, nothing = draw(*SEEN), draw(0, *SEEN[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in (x, nothing):
            traced = torch.jit.trace(layers, example)
            torch.testing.assert_close(traced(x), layers(x))
            assert traced(nothing).shape == (len(NAMES), *nothing.shape)


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
def test_onnx(model, draw, device):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layers = model(EVONORMS)
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
