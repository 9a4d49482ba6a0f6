"""A graph's module: its numbers, and the contract of every norm-activation layer."""

import copy
import io
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from evonorm_plugins import ConditionalNormAct, NormAct
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.layers.graph.operations import OPERATIONS
from evonorm_plugins.search.mutation import random_graph

# Every operation, v0 and v1, all three kinds of moving statistics.
EVERYTHING = Graph.of(
    (
        "add",
        (
            "div",
            ("add", ("mul", "v1", "x"), ("neg", ("mean_{b,w,h}", ("tanh", "x")))),
            ("max", ("std_{b,w,h}", ("log", ("exp", "x"))), ("rms_{w,h,c/g}", "x")),
        ),
        (
            "mul",
            ("sigmoid", ("add", "v0", ("sqrt", "x"))),
            ("div", ("mean_{w,h}", ("square", "x")), ("rms_{b,w,h}", "x")),
        ),
    )
)
GRAPHS = {
    "everything": EVERYTHING,
    "B0": KNOWN["EvoNormB0"],
    "BN-Swish-1": KNOWN["BN-Swish-1"],
    "S0": KNOWN["EvoNormS0"],
    "Random": KNOWN["Random"],
    # The same for all channels: a moving statistic of one number.
    "scalar": Graph.of(("div", "x", ("std_{b,w,h}", ("mean_{w,h,c}", "x")))),
    # Constant in x; over the batch of what is a vector.
    "vector": Graph.of(("add", ("std_{b,w,h}", "v1"), ("rms_{w,h,c/g}", "v0"))),
    "nothing": Graph.of(("add", "zero", "zero")),
}
CHANNELS = 8


@pytest.fixture(params=GRAPHS)
def graph(request):
    return GRAPHS[request.param]


@pytest.fixture
def make(device):
    """A layer with 4 groups whose parameters and statistics are not those it starts from."""

    def make(graph, *, dtype=torch.float32, **options):
        layer = GraphNormAct(CHANNELS, graph=graph, **{"groups": 4, **options})
        layer = layer.to(device, dtype)
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn_like(p), alpha=0.5)
            for b in layer.buffers():
                b.add_(torch.rand_like(b))
        return layer

    return make


@pytest.fixture
def draw(device):
    def draw(*shape, dtype=torch.float32):
        return torch.randn(shape, dtype=torch.float64).to(device, dtype)

    return draw


def arrays(layer):
    return {k: p.detach().cpu().numpy() for k, p in layer.named_parameters()}


def test_all_operations_are_tried():
    used = {op for g in GRAPHS.values() for op, *_ in g.nodes}
    assert {op for op in OPERATIONS if "_" not in op} <= used


@pytest.mark.parametrize("space", ["B", "S"])
def test_random_graphs_equal_numpy(space, make, draw, reference):
    """Training mode, against every node computed in full size by loops."""
    rng = random.Random(0)
    x = draw(3, CHANNELS, 2, 3, dtype=torch.float64)
    varying = 0
    for _ in range(120):
        graph = random_graph(rng, space)
        layer = make(graph, dtype=torch.float64)
        p = arrays(layer)
        expected = reference(
            graph, x.cpu().numpy(), v0=p.get("v0", 0.0), v1=p.get("v1", 1.0), groups=4
        )
        weight, bias = (p[k][:, None, None] for k in ("weight", "bias"))
        with np.errstate(all="ignore"):
            expected = expected * weight + bias
        y = layer(x)
        assert y.shape == x.shape
        np.testing.assert_allclose(y.detach().cpu().numpy(), expected, rtol=1e-9, atol=1e-9)
        varying += graph.depends_on_x()
    assert varying > 25


def test_graphs_of_one_digest_make_one_layer(make, draw):
    """To the last bit, though written in another order."""
    other = Graph.of(
        ("div", "x", ("max", ("add", ("std_{w,h}", "x"), ("mul", "x", "v1")), ("std_{b,w,h}", "x")))
    )
    one, two = make(KNOWN["EvoNormB0"]), make(other)
    two.load_state_dict(one.state_dict())
    x = draw(3, CHANNELS, 5, 7)
    assert torch.equal(one(x), two(x))
    assert one.graph == two.graph


def test_moving_statistics_by_hand(make, draw):
    """Mean, biased variance and mean of squares, of what the nodes see."""
    layer = GraphNormAct(CHANNELS, graph=EVERYTHING, momentum=0.25, groups=4).to(draw(1).device)
    kinds = layer.moving_statistics()
    assert sorted(kinds.values()) == ["mean", "rms", "std"]
    mean, rms, std = (
        next(n for n, k in kinds.items() if k == kind) for kind in sorted(kinds.values())
    )
    assert torch.equal(layer.get_buffer(mean), torch.zeros_like(layer.weight))
    assert torch.equal(layer.get_buffer(rms), torch.ones_like(layer.weight))
    assert torch.equal(layer.get_buffer(std), torch.ones_like(layer.weight))
    x = draw(3, CHANNELS, 5, 7)
    layer(x)
    over = (0, 2, 3)
    expected = 0.25 * x.tanh().mean(over)
    torch.testing.assert_close(layer.get_buffer(mean), expected)
    torch.testing.assert_close(layer.get_buffer(rms), 0.75 + 0.25 * x.square().mean(over))
    # log(exp(x)) = sign(exp(x)) ln|exp(x)| = x where exp(x) > eps.
    torch.testing.assert_close(layer.get_buffer(std), 0.75 + 0.25 * x.var(over, correction=0))


def test_inference_uses_the_moving_statistics(make, draw):
    layer = make(Graph.of(("div", ("mean_{b,w,h}", "x"), ("rms_{b,w,h}", "x")))).eval()
    x = draw(2, CHANNELS, 3, 4)
    mean, square = (layer.get_buffer(n) for n in ("running_mean4", "running_mean_square5"))
    y = mean / (square + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), y[:, None, None].expand_as(x))
    before = copy.deepcopy(layer.state_dict())
    layer.train().freeze()
    torch.testing.assert_close(layer(x), y[:, None, None].expand_as(x))
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    assert not layer.uses_batch()
    assert ", frozen, " in repr(layer)


def test_statistics_may_change_before_the_backward_pass(make, draw):
    """A frozen pass, then one that updates the statistics, then the gradient of the first."""
    graph = Graph.of(("mul", "x", ("mean_{b,w,h}", "x")))
    layer, x = make(graph), draw(2, CHANNELS, 3, 4).requires_grad_()
    (expected,) = torch.autograd.grad(layer.eval()(x).sum(), x)
    y = layer(x)
    layer.train()(draw(2, CHANNELS, 3, 4))
    (actual,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("denominator", "expected"),
    [
        (("add", ("std_{w,h}", "x"), ("neg", ("std_{w,h}", "x"))), 1e5),
        (("mul", ("std_{w,h}", "x"), "zero"), 1e5),
        (("max", ("neg", ("std_{w,h}", "v1")), ("neg", ("exp", "zero"))), -(1e5**0.5)),
        (("max", ("std_{w,h}", "zero"), ("neg", "v1")), 1e5**0.5),
    ],
)
def test_division_by_little(denominator, expected, draw):
    """What is known to be apart from zero is divided by as it is; all else is moved to eps."""
    layer = GraphNormAct(CHANNELS, graph=Graph.of(("div", "v1", denominator))).to(draw(1).device)
    y = layer(draw(2, CHANNELS, 3, 4))
    torch.testing.assert_close(y, torch.full_like(y, expected))


def test_infinite_statistics_are_not_kept(make, draw):
    layer = make(EVERYTHING)
    before = copy.deepcopy(dict(layer.named_buffers()))
    layer(draw(2, CHANNELS, 3, 4).fill_(float("inf")))
    kept = [torch.equal(before[k], b) for k, b in layer.named_buffers()]
    assert kept.count(False) <= 1  # tanh of infinity is 1: that mean is finite
    assert all(b.isfinite().all() for b in layer.buffers())


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(graph, training, make, draw):
    layer = make(graph, dtype=torch.float64).train(training)
    x = draw(2, CHANNELS, 2, 2, dtype=torch.float64).requires_grad_()
    parameters = dict(layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()), fast_mode=True)
    if layer.graph.depends_on_x():
        assert torch.autograd.gradgradcheck(function, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_layout(graph, dtype, layout, training, make, draw):
    layer = make(graph).train(training)
    x = draw(3, CHANNELS, 5, 7, dtype=dtype).to(memory_format=layout)
    exact = copy.deepcopy(layer).double()(x.double())
    x.requires_grad_()
    y = layer(x)
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(x), allow_unused=True)
    if layer.graph.depends_on_x():
        assert (dx.dtype, dx.stride()) == (x.dtype, x.stride())
    limit = 2 * torch.finfo(dtype).eps * exact.abs() + 1e-5
    assert ((y.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("training", [True, False])
def test_output_may_be_overwritten(graph, training, make, draw):
    layer = make(graph).train(training)
    x, dy = draw(3, CHANNELS, 5, 7).requires_grad_(), draw(3, CHANNELS, 5, 7)
    state = copy.deepcopy(layer.state_dict())
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x) * 2, inputs, dy, allow_unused=True)
    layer.load_state_dict(state)
    actual = torch.autograd.grad(layer(x).mul_(2), inputs, dy, allow_unused=True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(graph, training, make, draw):
    layer = make(graph).train(training)
    before = copy.deepcopy(dict(layer.named_buffers()))
    x = draw(0, CHANNELS, 5, 7).requires_grad_()
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("error")
        y = layer(x)
        (y.sum() + 1).backward()
    assert y.shape == x.shape
    for p in layer.parameters():
        torch.testing.assert_close(p.grad, torch.zeros_like(p))
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


def test_any_size(graph, make, draw):
    layer = make(graph)
    for shape in ((1, CHANNELS, 1, 1), (2, CHANNELS, 1, 9), (1, CHANNELS, 6, 5)):
        y = layer(draw(*shape))
        assert y.shape == shape
        assert y.isfinite().all()


def test_copies(graph, make, draw):
    layer = make(graph)
    x = draw(3, CHANNELS, 5, 7)
    layer(x)
    whole = io.BytesIO()
    torch.save(layer, whole)
    whole.seek(0)
    loaded = make(graph)
    loaded.load_state_dict(layer.state_dict())
    again = GraphNormAct(CHANNELS, **layer.options()).to(x.device)
    again.load_state_dict(layer.state_dict())
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(whole, weights_only=False),
        loaded,
        again,
    ):
        assert repr(other) == repr(layer)
        assert torch.equal(other.eval()(x), layer.eval()(x))


def test_without_activation(graph, make, draw):
    layer = make(graph, eps=1e-3, momentum=0.3)
    affine = layer.without_activation()
    assert type(affine) is GraphNormAct
    assert set(affine.state_dict()) == {"weight", "bias"}
    assert affine.options() == layer.options()
    assert not affine.uses_batch()
    x = draw(3, CHANNELS, 5, 7)
    expected = x * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(affine(x), expected)


def test_conditional(make, draw):
    layer = make(EVERYTHING)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.fill_(1)
        plain.bias.zero_()
    conditional = ConditionalNormAct(layer, 3).to(draw(1).device)
    x, condition = draw(2, CHANNELS, 5, 7), draw(2, 3)
    gain, bias = conditional.gain(condition), conditional.bias(condition)
    expected = plain(x) * (1 + gain)[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(conditional(x, condition), expected)


def test_in_print(make):
    layer = GraphNormAct(8, graph=KNOWN["EvoNormS0"], groups=4)
    assert repr(layer) == (
        "GraphNormAct(8, x * sigmoid(x * v1) / std_{w,h,c/g}(x), apply_act=True, groups=4, "
        "eps=1e-05, momentum=0.1, impl=auto, compiled=False, computed_by=fused EvoNorm-S0)"
    )


def test_uses_batch(graph, make):
    layer = make(graph)
    moving = bool(layer.moving_statistics())
    assert isinstance(layer, NormAct)
    assert layer.uses_batch() == moving
    assert not layer.eval().uses_batch()
    # What v1 is does not depend on the batch.
    by_batch = any(op.endswith("{b,w,h}") for op, *_ in graph.nodes)
    assert moving == (by_batch and graph != GRAPHS["vector"])


def test_statistic_of_a_single_number(make, draw):
    layer = make(GRAPHS["scalar"], momentum=1)
    x = draw(3, CHANNELS, 5, 7)
    layer(x)
    assert layer.running_var5.shape == (1,)
    expected = x.mean((1, 2, 3)).var(correction=0)
    torch.testing.assert_close(layer.running_var5[0], expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"graph": None}, TypeError, "graph=None must be a Graph"),
        ({"graph": "layer.json"}, TypeError, "must be a Graph"),
        ({"groups": 0}, ValueError, "groups=0"),
        ({"momentum": 2}, ValueError, "momentum=2"),
        ({"eps": 0}, ValueError, "eps=0"),
        ({"grupos": 1}, TypeError, "grupos"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        GraphNormAct(8, **{"graph": EVERYTHING, **options})


@pytest.mark.parametrize("shape", [(), (7,), (2, 4, 3)], ids=str)
def test_any_number_of_spatial_dimensions(shape, make, draw):
    layer = make(EVERYTHING)
    other, x = copy.deepcopy(layer), draw(3, CHANNELS, *shape).requires_grad_()
    y, expected = layer(x), other(x.reshape(3, CHANNELS, -1, 1)).reshape(x.shape)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
    expected = torch.autograd.grad(expected.square().sum(), (x, *other.parameters()))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(other.named_buffers()))


def test_bad_input(make, draw):
    layer = make(EVERYTHING)
    with pytest.raises(ValueError, match="takes \\(N, C\\)"):
        layer(draw(CHANNELS))
    with pytest.raises(ValueError, match="got 4 channels"):
        layer(draw(3, 4, 5, 7))
    with pytest.raises(TypeError, match="floating point"):
        layer(draw(3, CHANNELS, 5, 7).long())


def test_autocast(make, draw, device):
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), make(EVERYTHING)).to(device)
    x = draw(2, 3, 9, 9)
    expected = copy.deepcopy(model)(x)
    with torch.autocast(device.type, torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


@pytest.fixture
def reset():
    torch.compiler.reset()


@pytest.mark.usefixtures("reset")
def test_compile(graph, make, draw):
    """Training without a graph break, at two sizes: outputs, gradients and moving statistics."""
    layer = make(graph)
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for shape in ((2, CHANNELS, 4, 6), (3, CHANNELS, 7, 5)):
        x, dy = draw(*shape), draw(*shape)
        results = []
        for m in (layer, compiled):
            own = x.clone().requires_grad_()
            y = m(own)
            inputs = [own, *m.parameters()]
            results.append([y, *torch.autograd.grad(y, inputs, dy, allow_unused=True)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    buffers = {k.removeprefix("_orig_mod."): b for k, b in compiled.named_buffers()}
    torch.testing.assert_close(buffers, dict(layer.named_buffers()))


@pytest.mark.usefixtures("reset")
def test_export(graph, make, draw):
    model = nn.Sequential(make(graph), make(graph, apply_act=False)).eval()
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    example = draw(2, CHANNELS, 4, 6)
    program = torch.export.export(model, (example,), dynamic_shapes=(sizes,))
    for shape in ((3, CHANNELS, 7, 5), (2, CHANNELS, 4, 6)):
        x = draw(*shape)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
def test_trace(graph, make, draw):
    layer = make(graph).eval()
    traced = torch.jit.trace(layer, draw(2, CHANNELS, 4, 6))
    for shape in ((3, CHANNELS, 7, 5), (1, CHANNELS, 1, 1)):
        x = draw(*shape)
        torch.testing.assert_close(traced(x), layer(x))


def test_transforms(graph, make, draw):
    """torch.func sees plain operations; with statistics in training mode, see the B series."""
    layer = make(graph).double().eval()
    x, dx = (draw(3, CHANNELS, 2, 3, dtype=torch.float64) for _ in range(2))
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x).sum((2, 3)), x)
    found = torch.func.jacrev(lambda x: layer(x).sum((2, 3)))(x)
    torch.testing.assert_close(found, jacobian)
    along = torch.func.jvp(layer, (x,), (dx,))[1].sum((2, 3))
    torch.testing.assert_close(along, jacobian.flatten(2) @ dx.flatten())
    by_sample = torch.func.vmap(lambda x: layer(x[None])[0])(x)
    torch.testing.assert_close(by_sample, layer(x))


def test_values_come_later(graph, device):
    fresh = GraphNormAct(CHANNELS, graph=graph, device=device)
    later = GraphNormAct(CHANNELS, graph=graph, device="meta").to_empty(device=device)
    for tensor in later.state_dict().values():
        tensor.fill_(3)
    later.reset_parameters()
    torch.testing.assert_close(dict(later.state_dict()), dict(fresh.state_dict()))
