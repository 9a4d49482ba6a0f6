"""Graphs that fused operators compute: which, how well, and that they stay the same layer."""

import copy
import random
import time

import pytest
import torch

from evonorm_plugins import kernels
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers.candidates import UNNAMED
from evonorm_plugins.layers.graph import evaluate
from evonorm_plugins.layers.graph.fused import fused_formula
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.search.mutation import mutate, random_graph

CHANNELS = 8
# Formula -> what computes it.
FORMULAS = {
    **{str(KNOWN[f"EvoNorm{n}"]): f"EvoNorm-{n}" for n in ("B0", "B1", "B2", "S0", "S1", "S2")},
    str(KNOWN["Candidate-B9"]): "EvoNorm-B0",
    str(KNOWN["RS + rej"]): "RS + rej",
    str(KNOWN["FRN"]): "rms_{w,h} and tlu",
    str(KNOWN["GN-ReLU"]): "norm_{w,h,c/g} and relu",
    str(KNOWN["GN-Swish-1"]): "norm_{w,h,c/g} and silu",
    str(KNOWN["LN-ReLU"]): "norm_{w,h,c} and relu",
    # In another order, with signs, with what gamma and beta take in.
    "sigmoid(x) * (x / std_{w,h}(x))": "EvoNorm-S1",
    "v0 - v1 * x * sigmoid(x) / rms_{w,h}(x)": "EvoNorm-S2",
    "-(x / exp(v0)) / max(std_{b,w,h}(x), (x + 1) * rms_{w,h}(x)) + v1": "EvoNorm-B1",
    "max(x, 0) * v1 / rms_{b,w,h}(x)": "RS + rej",
    # v0, or what is made of both, in the place of v.
    "x * sigmoid(v0 * x) / std_{w,h,c}(x)": "EvoNorm-S0",
    "x * sigmoid(-x) / std_{w,h,c/g}(x)": "EvoNorm-S0",
    "x * sigmoid(tanh(v1) * x) / rms_{w,h,c/g}(x)": "EvoNorm-S2 with v",
    "x / max(std_{b,w,h}(x), std_{w,h}(x) - x * max(v0, v1))": "EvoNorm-B0",
    "x / max(std_{b,w,h}(x), std_{w,h}(x))": "EvoNorm-B0",
    # Those of -x.
    "x / max(std_{b,w,h}(x), rms_{w,h}(x) + x)": "EvoNorm-B2",
    "x / max(std_{b,w,h}(x), (1 - x) * rms_{w,h}(x)) * v1": "EvoNorm-B1",
    # Norms, with an activation or without.
    "x / std_{w,h,c}(x)": "std_{w,h,c} and none",
    "(x - mean_{w,h}(x)) / std_{w,h}(x) / exp(v0)": "norm_{w,h} and none",
    "max(x, 0) / rms_{w,h}(x)": "rms_{w,h} and relu",
    "max(x - mean_{w,h,c/g}(x), 0) / std_{w,h,c/g}(x)": "norm_{w,h,c/g} and relu",
    "max(v0 - x / std_{w,h}(x), 0)": "std_{w,h} and relu",
    "z * sigmoid(v1 * z), z = x / std_{w,h,c/g}(x)": "std_{w,h,c/g} and swish",
}
# What is like one of these, and is another function.
OTHERS = [
    *(str(KNOWN[n]) for n in UNNAMED if n != "Candidate-B9"),
    "x * sigmoid(x) / std_{b,w,h}(x)",
    "x * sigmoid(v1 + x) / std_{w,h}(x)",
    "x * sigmoid(x) / std_{w,h}(sigmoid(x))",
    "x * sigmoid(x) / (std_{w,h}(x) + v1)",
    "x * sigmoid(x) / sqrt(mean_{w,h,c/g}(square(x)))",  # without the epsilon
    "x * sigmoid(x) * rms_{w,h}(x)",
    "x / max(std_{b,w,h}(x), v1 * x + std_{w,h,c}(x))",
    "x / max(std_{w,h}(x), v1 * x + std_{w,h}(x))",
    "x / max(rms_{b,w,h}(x), v1 * x + std_{w,h}(x))",
    "x / max(std_{b,w,h}(x), v1 * (x + std_{w,h}(x)))",
    "x / max(std_{b,w,h}(x), x + v1 * std_{w,h}(x))",
    "x / max(std_{b,w,h}(x), v1 * x + rms_{w,h}(x))",
    "x / max(std_{b,w,h}(x), rms_{w,h}(x) - v1 * x)",
    "x / max(std_{b,w,h}(x), (x + v1) * rms_{w,h}(x))",
    "x * x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))",
    "max(x, v0) / rms_{w,h}(x)",
    "max(x, 0) / std_{b,w,h}(x)",
    "x / rms_{b,w,h}(x)",
    "(x - mean_{w,h}(x)) / std_{w,h,c}(x)",
    "(x - mean_{w,h}(x)) / rms_{w,h}(x)",
    "v0 / std_{w,h}(x)",
    "x * sigmoid(x)",
    "x / std_{w,h}(x) / std_{w,h}(v1)",  # of a constant, which is not kept away from zero
    "v0 * v1",
]
AFFINE = ["per channel", "per sample"]


@pytest.fixture
def impl(device):
    name = {"cpu": "cpu", "cuda": "triton"}[device.type]
    if kernels.show_config().startswith("cpu: torch") and name == "cpu":
        pytest.skip("no kernels")
    return name


def differentiated(layer, x, dy, affine):
    """y, and gradients of x, of the layer's parameters, of gamma and beta."""
    layer = copy.deepcopy(layer)
    x = x.detach().clone().requires_grad_()
    given = [] if affine is None else [p.clone().requires_grad_() for p in affine]
    if given:
        layer.release_affine()
    inputs = [x, *layer.parameters(), *given]
    y = layer(x, *given)
    found = torch.autograd.grad(y, inputs, dy, allow_unused=True, materialize_grads=True)
    return [y.detach(), *found, *layer.buffers()]


def layers_of(formula, device, **options):
    """The graph's nodes, and a layer with other options: the same parameters and statistics."""
    nodes = GraphNormAct(CHANNELS, graph=parse(formula), groups=4, eps=1e-3, impl="torch")
    with torch.no_grad():
        for p in nodes.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
        for b in nodes.buffers():
            b.add_(torch.rand_like(b))
    other = GraphNormAct(CHANNELS, graph=parse(formula), groups=4, eps=1e-3, **options)
    assert list(other.state_dict()) == list(nodes.state_dict())
    other.load_state_dict(nodes.state_dict())
    return nodes.to(device), other.to(device)


@pytest.mark.parametrize("formula", FORMULAS)
def test_which(formula):
    layer = GraphNormAct(CHANNELS, graph=parse(formula))
    assert layer.computed_by == f"fused {FORMULAS[formula]}"
    assert repr(layer).endswith(f"computed_by=fused {FORMULAS[formula]})")


@pytest.mark.parametrize("formula", OTHERS)
def test_which_not(formula):
    layer = GraphNormAct(CHANNELS, graph=parse(formula))
    assert layer.computed_by == "torch"
    assert layer(torch.randn(2, CHANNELS, 3, 4)).shape == (2, CHANNELS, 3, 4)


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("formula", FORMULAS)
def test_as_good_as_the_nodes(formula, training, dtype, affine, device, impl):
    """Output, gradients and moving statistics: at most twice the error of the nodes."""
    nodes, layer = (m.train(training) for m in layers_of(formula, device, impl=impl))
    shape = 3, CHANNELS, 5, 7
    x, dy = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    given = [torch.randn(3, CHANNELS, device=device) for _ in range(2)]
    given = given if affine == "per sample" else None
    double = None if given is None else [p.double() for p in given]
    exact = differentiated(copy.deepcopy(nodes).double(), x.double(), dy.double(), double)
    plain, found = (differentiated(m, x, dy, given) for m in (nodes, layer))
    for a, b, c in zip(exact, plain, found, strict=True):
        assert (c.dtype, c.shape) == (b.dtype, b.shape)
        allowed = 2 * (b.double() - a).abs().max() + 2e-6 * a.abs().max() + 1e-30
        assert (c.double() - a).abs().max() <= allowed


def test_random_graphs_are_the_formulas_that_they_are_taken_for(device):
    """Mutated copies of those that are: whatever is still taken for a formula equals its nodes."""
    rng = random.Random(0)
    starts = [parse(formula) for formula in FORMULAS]
    x = torch.randn(3, CHANNELS, 3, 4, dtype=torch.float64, device=device)
    matched = others = 0
    for k in range(1500):
        graph = random_graph(rng, "B") if k % 10 == 0 else mutate(starts[k % len(starts)], rng, "B")
        if fused_formula(graph.canonical()) is None:
            others += 1
            continue
        nodes, layer = (m.double() for m in layers_of(str(graph), device))
        for a, b in zip(*(differentiated(m, x, x, None) for m in (nodes, layer)), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9 * a.abs().max().item())
        matched += 1
    assert matched > 100
    assert others > 100


def test_what_asks_for_it(device, impl):
    b4 = KNOWN["Candidate-B4"]
    with pytest.raises(ConfigError, match=r"impl='cpu': no kernel computes x / max\(std"):
        GraphNormAct(CHANNELS, graph=b4, impl="cpu")
    with pytest.raises(ConfigError, match="impl='none' is not one of"):
        GraphNormAct(CHANNELS, graph=b4, impl="none")
    with pytest.raises(ConfigError, match="compiled=1 must be True or False"):
        GraphNormAct(CHANNELS, graph=b4, compiled=1)
    affine = GraphNormAct(CHANNELS, graph=b4, impl=impl, apply_act=False)
    assert affine.computed_by == "fused affine"
    s0 = GraphNormAct(CHANNELS, graph=KNOWN["EvoNormS0"], impl="torch")
    assert s0.computed_by == "torch"
    again = GraphNormAct(CHANNELS, **s0.options())
    assert again.computed_by == "torch"


def test_keeps_no_more_than_its_formula(device, impl):
    """x, and a few numbers for each channel."""
    kept = []

    def pack(t):
        kept.append(t.numel())
        return t

    x = torch.randn(2, CHANNELS, 16, 16, device=device)
    for formula in ("x * sigmoid(v1 * x) / std_{w,h,c/g}(x)", str(KNOWN["EvoNormB0"])):
        _, layer = layers_of(formula, device, impl=impl)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(x.clone().requires_grad_())
        assert sum(n for n in kept if n > 4 * CHANNELS) == x.numel()


def test_who_looks_at_the_statistics_is_told(device):
    """What they are of, where they are those of the batch, as by the nodes."""
    for formula in (str(KNOWN["EvoNormB2"]), "max(x, 0) / rms_{b,w,h}(x)"):
        seen = []
        x = torch.randn(2, CHANNELS, 3, 4, device=device)
        for layer in layers_of(formula, device):
            with layer.observed(lambda *told, seen=seen: seen.append(told)):
                layer(x)
                layer.eval()(x)
        assert [n for n, _ in seen] == list(layer.moving_statistics()) * 2
        assert all(torch.equal(value, x) for _, value in seen)


def test_shared_nodes_are_read_once():
    """A product of 2^60 factors, of which each half is one node."""
    squares = [("mul", 0, 0), *(("mul", k, k) for k in range(4, 63))]
    began = time.perf_counter()
    assert fused_formula(Graph([*squares, ("std_{w,h}", 0), ("div", 63, 64)]).canonical()) is None
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["Candidate-B4", "Candidate-S10", "BN-ReLU"])
def test_compiled(name, training, device, monkeypatch):
    """The same numbers, moving statistics too; without inductor, which takes its time."""
    calls = []

    def traced(function, **options):
        inner = torch.compile(function, backend="aot_eager", fullgraph=True, **options)
        return lambda *arguments: calls.append(1) or inner(*arguments)

    torch.compiler.reset()
    evaluate.compiled_nodes.cache_clear()
    monkeypatch.setattr(evaluate, "compile_function", traced)
    nodes, layer = (m.train(training) for m in layers_of(str(KNOWN[name]), device, compiled=True))
    assert layer.computed_by == "torch.compile"
    for shape in ((3, CHANNELS, 5, 7), (2, CHANNELS, 4, 6)):
        x = torch.randn(shape, device=device)
        for a, b in zip(*(differentiated(m, x, x, None) for m in (nodes, layer)), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2
    overwritten = layer(x.requires_grad_()).mul_(2)
    assert torch.autograd.grad(overwritten.sum(), x)[0].isfinite().all()
    torch.func.vmap(lambda x: layer.eval()(x[None])[0])(x.detach())  # plain operations
    assert len(calls) == 3
    evaluate.compiled_nodes.cache_clear()
