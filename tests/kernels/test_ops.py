"""The operators: what compilers and autograd are told, which implementation runs, threads."""

import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import evonorm_plugins
from evonorm_plugins import functional as F
from evonorm_plugins import get_norm_act, kernels

NEEDS_CPU = pytest.mark.skipif(
    kernels.cpu.missing() is not None, reason=f"no CPU kernels: {kernels.cpu.missing()}"
)
LAYERS = ["EvoNormS0", "EvoNormS1", "EvoNormS2", "EvoNormB0", "EvoNormB1", "EvoNormB2"]


def samples(kind, draw):
    """Arguments of the two operators of a formula, with all that makes them differ."""
    ops = torch.ops.evonorm
    for layout in (torch.contiguous_format, torch.channels_last):
        for conditional in (False, True):
            arguments, dy = draw((3, 8, 5, 7), conditional=conditional, batch_var=True)
            x, weight, bias, v = (arguments[k] for k in ("x", "weight", "bias", "v"))
            x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)
            v = v if kind in ("s0", "b0") else None
            if kind == "affine":
                yield (
                    ops.affine,
                    (x, weight, bias, "cpu"),
                    ops.affine_backward,
                    (dy, x, weight, "cpu"),
                )
            elif kind.startswith("s"):
                forward = (x, weight, bias, v, kind, 4, 1e-5, "cpu")
                mean, rstd = ops.sample(*forward)[1:]
                backward = (dy, x, weight, v, mean, rstd, kind, "cpu")
                yield ops.sample, forward, ops.sample_backward, backward
            else:
                for given in (None, arguments["batch_var"]):
                    forward = (x, weight, bias, v, given, kind, 1e-5, "cpu")
                    mean, var, own_mean, own_var = ops.batch(*forward)[1:]
                    own = (own_mean, own_var) if given is None else (None, given)
                    backward = (dy, x, weight, v, mean, var, *own, kind, 1e-5, "cpu")
                    yield ops.batch, forward, ops.batch_backward, backward


@NEEDS_CPU
def test_opcheck(kind, draw):
    """Schema, fake tensors, autograd registration, and tracing with changing sizes."""
    for forward, inputs, backward, backward_inputs in samples(kind, draw):
        recorded = [
            a.clone(memory_format=torch.preserve_format).requires_grad_()
            if isinstance(a, torch.Tensor)
            else a
            for a in inputs
        ]
        torch.library.opcheck(forward.default, recorded)
        # Gradients of the backward operator come from plain formulas, not from the operator.
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(backward.default, backward_inputs, test_utils=checks)


@NEEDS_CPU
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_compiled_graph_holds_the_operator(name):
    """Forward and backward, without a graph break, and with the numbers of eager mode."""
    torch.compiler.reset()
    found = []

    def look(graph, _):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    layer = get_norm_act(name, 8)
    compiled = torch.compile(
        copy.deepcopy(layer), backend=aot_autograd(fw_compiler=look), fullgraph=True
    )
    x, dy = torch.randn(2, 8, 5, 7, requires_grad=True), torch.randn(2, 8, 5, 7)
    actual = torch.autograd.grad(compiled(x), [x, *compiled.parameters()], dy)
    expected = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    torch.testing.assert_close(actual, expected)
    stem = "evonorm.sample" if name == "EvoNormS0" else "evonorm.batch"
    assert {f"{stem}.default", f"{stem}_backward.default"} <= set(found)


@NEEDS_CPU
@pytest.mark.parametrize(("name", "operator"), [("EvoNormS0", "sample"), ("EvoNormB0", "batch")])
def test_modes_and_profilers_see_the_operators(name, operator):
    """Plain calls go past the dispatcher; these must not."""

    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.names.add(str(function))
            return function(*arguments, **(options or {}))

    layer, x = get_norm_act(name, 4), torch.randn(2, 4, 3, 3, requires_grad=True)
    with Seen() as seen:
        layer(x).sum().backward()
    assert {f"evonorm.{operator}.default", f"evonorm.{operator}_backward.default"} <= seen.names
    with torch.profiler.profile() as profile:
        layer(x).sum().backward()
    events = {event.key for event in profile.key_averages()}
    assert {f"evonorm::{operator}", f"evonorm::{operator}_backward"} <= events


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_exported_graph_holds_plain_operations(name):
    """It can be run where this package is not installed."""
    layer = get_norm_act(name, 8).eval()
    program = torch.export.export(layer, (torch.randn(2, 8, 5, 7),))
    assert "evonorm" not in str(program.graph)


@NEEDS_CPU
def test_export_with_the_kernels_asked_for():
    layer = get_norm_act("EvoNormS0", 8, impl="cpu").eval()
    x = torch.randn(2, 8, 5, 7)
    program = torch.export.export(layer, (x,))
    assert "torch.ops.evonorm.sample.default" in str(program.graph)
    torch.testing.assert_close(program.module()(x), layer(x))


# ---- which implementation ----


@NEEDS_CPU
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, "cpu"),
        (torch.bfloat16, "cpu"),
        (torch.float16, "cpu"),
        (torch.float64, "torch"),
    ],
)
def test_auto(dtype, expected):
    assert kernels.select("auto", torch.zeros(1, dtype=dtype)) == expected
    assert kernels.select("torch", torch.zeros(1, dtype=dtype)) == "torch"
    assert kernels.select("auto", torch.zeros(1, dtype=dtype, device="meta")) == "torch"


@NEEDS_CPU
def test_what_is_asked_for_and_cannot_run_is_refused(monkeypatch):
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot run: x is torch.float64.*'auto'"):
        F.evonorm_s1(torch.zeros(1, 4, 2, 2).double(), torch.ones(4), torch.zeros(4), impl="cpu")
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: x is on meta"):
        get_norm_act("EvoNormS0", 4, impl="cpu")(torch.zeros(1, 4, 2, 2, device="meta"))
    monkeypatch.setitem(kernels._MISSING, "triton", "Triton is not installed")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run: Triton is not installed"):
        get_norm_act("EvoNormB0", 4, impl="triton")(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"impl='fast' is not one of 'auto', 'torch', 'cpu'"):
        get_norm_act("EvoNormB0", 4, impl="fast")


def test_without_the_library(monkeypatch):
    """Plain torch, and one line that says so, once."""
    monkeypatch.setitem(kernels._MISSING, "cpu", "no compiler was there")
    monkeypatch.setattr(kernels, "_warned", set())
    layer, x = get_norm_act("EvoNormS0", 8), torch.randn(2, 8, 3, 3)
    with pytest.warns(UserWarning, match="plain torch.*slower.*no compiler was there"):
        y = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert torch.equal(y, get_norm_act("EvoNormS0", 8, impl="torch")(x))
    assert (
        "cpu: torch (cpu kernels cannot run: no compiler was there)"
        in evonorm_plugins.show_config()
    )
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: no compiler was there"):
        get_norm_act("EvoNormS0", 8, impl="cpu")(x)


@NEEDS_CPU
def test_show_config():
    text = evonorm_plugins.show_config()
    assert f"cpu: cpu kernels ({kernels.cpu.instruction_set()}, OpenMP)" in text
    assert "cuda: " in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(7)}, r"weight of \(7,\) .* not both \(8,\) or \(2, 8\)"),
        ({"weight": torch.ones(3, 8)}, r"weight of \(3, 8\) and bias of \(8,\)"),
        ({"bias": torch.ones(2, 8)}, r"bias of \(2, 8\) are not both"),
        ({"v": torch.ones(2, 8)}, r"v of \(2, 8\) is not \(8,\)"),
    ],
    ids=str,
)
@NEEDS_CPU
def test_parameters_of_a_wrong_shape_are_refused(change, message):
    """The kernels would read what lies beside them."""
    arguments = {"weight": torch.ones(8), "bias": torch.ones(8), "v": torch.ones(8), **change}
    with pytest.raises(ValueError, match=message):
        F.evonorm_s0(torch.randn(2, 8, 3, 3), **arguments)


# ---- threads and processes ----


@pytest.fixture
def threads():
    """``threads(n)``: use n threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@NEEDS_CPU
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 9, 7), (2, 24, 33, 17), (3, 132, 4, 4)], ids=str)
def test_any_number_of_threads(kind, shape, layout, threads, draw, differentiate):
    """The same bits, also where there are fewer groups or channels than threads."""
    arguments, dy = draw(shape)
    arguments["x"] = arguments["x"].to(memory_format=layout)
    results = []
    for number in (1, 2, 3, 5, 2):
        threads(number)
        results.append(differentiate(kind, arguments, dy, "cpu", groups=2))
    for other in results[1:]:
        assert all(torch.equal(other[k], t) for k, t in results[0].items())


class Normalized(torch.utils.data.Dataset):
    """Applies a layer in the process of the loader."""

    layer = get_norm_act("EvoNormS0", 8).requires_grad_(False)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.layer(torch.full((1, 8, 16, 16), float(index)))


@NEEDS_CPU
def test_in_workers_of_a_data_loader(threads):
    """Processes forked after the kernels have run on several threads."""
    threads(2)
    data = Normalized()
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(
        data, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    for actual, y in zip(loader, expected, strict=True):
        assert torch.equal(actual, y)


@NEEDS_CPU
def test_one_openmp_runtime():
    """A second one would have threads of its own, which wait for torch's in a loop."""
    script = (
        "import torch, evonorm_plugins; torch.randn(512, 512) @ torch.randn(512, 512);"
        "evonorm_plugins.EvoNormS0(32)(torch.randn(4, 32, 64, 64));"
        "names = {l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split()[-1]};"
        "print(sorted(n for n in names if 'libgomp' in n or 'libiomp' in n or 'libomp' in n))"
    )
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("no /proc here")
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    output = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert len(eval(output)) == 1, output


# ---- training ----


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_training_follows_plain_torch(name):
    """200 steps of a small classifier: the losses of fused and plain layers stay together."""

    def losses(impl):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), get_norm_act(name, 16, groups=4, impl=impl))
            if name == "EvoNormS0"
            else (nn.Conv2d(3, 16, 3, 2, 1), get_norm_act(name, 16, impl=impl)),
            *(nn.Conv2d(16, 32, 3, 2, 1), get_norm_act(name, 32, impl=impl)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        waves = torch.sin(torch.arange(16.0) * torch.tensor([0.4, 0.8, 1.2, 1.6])[:, None])
        result = []
        for _ in range(200):
            label = torch.randint(4, (16,))
            image = waves[label][:, None, None, :] + torch.randn(16, 3, 16, 16)
            loss = nn.functional.cross_entropy(model(image), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.append(loss.item())
        return torch.tensor(result)

    plain, fused = losses("torch"), losses("auto")
    torch.testing.assert_close(fused[:20], plain[:20], rtol=1e-3, atol=1e-4)
    smooth = nn.functional.avg_pool1d(torch.stack([plain, fused]), 20)
    assert (smooth[1] - smooth[0]).abs().max() < 0.05
    assert smooth[:, -1].max() < 0.5 * smooth[:, 0].min()


@NEEDS_CPU
@pytest.mark.parametrize("name", LAYERS)
def test_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(2, 8, 5, 7, requires_grad=True)
        (dx,) = torch.autograd.grad(get_norm_act(name, 8)(x).square().sum(), x, create_graph=True)
        dx.sum().backward()
