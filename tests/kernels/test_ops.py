"""The operators: what compilers, modes and autograd are told, and what is refused."""

import copy
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from evonorm_plugins import functional as F
from evonorm_plugins import get_norm_act, kernels, torch_private
from evonorm_plugins.kernels import library
from evonorm_plugins.kernels.ops import operator
from tests.kernels.conftest import BATCH_KINDS, BATCH_NORM_KINDS, GROUP_KINDS, WITH_V

EVONORMS = ["EvoNorm" + s + i for s in "SB" for i in "012"]
NEEDS_CPU = pytest.mark.skipif(
    kernels.cpu.missing() is not None, reason=f"no CPU kernels: {kernels.cpu.missing()}"
)


def samples(kind, draw):
    """Arguments of the two operators of a formula, with all that makes them differ.

    Not every pair of layout and gamma: no result depends on both.
    """
    ops = torch.ops.evonorm
    for layout, conditional in ((torch.contiguous_format, False), (torch.channels_last, True)):
        arguments, dy = draw((3, 8, 5, 7), conditional=conditional, batch_var=True)
        x, weight, bias, v = (arguments[k] for k in ("x", "weight", "bias", "v"))
        x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)
        v = v if kind in WITH_V else None
        if kind in GROUP_KINDS:
            forward = (x, weight, bias, v, *GROUP_KINDS[kind], 4, 1e-5, "cpu")
            own = ops.group(*forward)[1]
            backward = (dy, x, weight, bias, v, own, *GROUP_KINDS[kind], "cpu")
            yield ops.group, forward, ops.group_backward, backward
        elif kind in BATCH_NORM_KINDS:
            act = BATCH_NORM_KINDS[kind]
            for given in ((None, None), (torch.randn(8), arguments["batch_var"])):
                forward = (x, weight, bias, v, *given, act, 1e-5, "cpu")
                statistics = ops.batch_norm(*forward)[1]
                backward = (dy, x, weight, bias, v, statistics, act, "cpu")
                yield ops.batch_norm, forward, ops.batch_norm_backward, backward
        elif kind == "affine":
            yield (
                ops.affine,
                (x, weight, bias, "cpu"),
                ops.affine_backward,
                (dy, x, weight, "cpu"),
            )
        elif kind not in BATCH_KINDS:
            forward = (x, weight, bias, v, kind, 4, 1e-5, "cpu")
            own = ops.sample(*forward)[1]
            backward = (dy, x, weight, v, own, kind, "cpu")
            yield ops.sample, forward, ops.sample_backward, backward
        else:
            for given in (None, arguments["batch_var"]):
                forward = (x, weight, bias, v, given, kind, 1e-5, "cpu")
                mean, var, own_mean, own_var = ops.batch(*forward)[1:]
                if kind == "rs_rej":
                    mean = var = None
                own = (own_mean, own_var) if given is None else (None, given)
                backward = (dy, x, weight, v, mean, var, *own, kind, 1e-5, "cpu")
                yield ops.batch, forward, ops.batch_backward, backward


@NEEDS_CPU
@pytest.mark.parametrize(
    "kind",
    ["s0", "s1", "gn_relu", "frn", "bn_relu", "bn_swish", "b0", "b1", "rs_rej", "affine"],
)
def test_opcheck(kind, draw):
    """Schema, fake tensors, autograd registration, and tracing with changing sizes.

    Each operator with v and without; other kinds are other strings in place of these.
    """
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
@pytest.mark.parametrize(
    ("name", "stem"),
    [("EvoNormS0", "sample"), ("GN-Swish", "group"), ("EvoNormB0", "batch"), ("RS + rej", "batch")],
)
def test_compiled_graph_holds_the_operator(name, stem):
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
    assert {f"evonorm.{stem}.default", f"evonorm.{stem}_backward.default"} <= set(found)


@NEEDS_CPU
@pytest.mark.parametrize(
    ("name", "operator"),
    [
        *(("EvoNormS0", "sample"), ("FRN", "group"), ("EvoNormB0", "batch")),
        ("BN-ReLU", "batch_norm"),
    ],
)
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


@pytest.mark.parametrize(
    "name", ["EvoNormS0", "EvoNormB0", "GN-ReLU", "BN-ReLU", "FRN", "RS + rej"]
)
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


@NEEDS_CPU
@pytest.mark.parametrize("name", [*EVONORMS, "GN-ReLU", "GN-Swish", "BN-ReLU", "FRN", "RS + rej"])
def test_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(2, 8, 5, 7, requires_grad=True)
        (dx,) = torch.autograd.grad(get_norm_act(name, 8)(x).square().sum(), x, create_graph=True)
        dx.sum().backward()


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


@NEEDS_CPU
def test_whatever_is_wrong_is_refused():
    """Of every operator each argument left out, of a wrong size, dtype, device, layout or value.

    In a process of its own: where a kernel read beside its arguments, the last call that was
    written is the one that crashed.
    """
    script = Path(__file__).with_name("bad_calls.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}  # which would take tensors of the CPU
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment
    )
    *_, last = result.stdout.splitlines() or [""]
    wrong = [line for line in result.stdout.splitlines() if line.startswith("WRONG")]
    assert result.returncode == 0, "\n".join([*wrong, last, result.stderr])
    assert int(last.split()[0]) > 4000, last


@pytest.mark.parametrize("impl", ["torch", pytest.param("cpu", marks=NEEDS_CPU)])
@pytest.mark.parametrize("name", ["evonorm_b0", "evonorm_b0_train", "evonorm_s0"])
def test_v_left_out(name, impl):
    function = getattr(F, name)
    x, p = torch.randn(2, 8, 3, 3), torch.ones(8)
    rest = [torch.ones(8)] if name == "evonorm_b0" else []
    with pytest.raises(ValueError, match=r"v is None, but kind='[bs]0' has one for each channel"):
        function(x, p, p, None, *rest, impl=impl)


@pytest.mark.parametrize("name", ["b0", "b1", "b2"])
def test_batch_var_left_out(name):
    x, p = torch.randn(2, 8, 3, 3), torch.ones(8)
    with pytest.raises(ValueError, match=f"batch_var is None: evonorm_{name}_train takes that of"):
        getattr(F, f"evonorm_{name}")(x, p, p, *([p] if name == "b0" else []), None)


def test_batch_mean_square_left_out():
    x, p = torch.randn(2, 8, 3, 3), torch.ones(8)
    with pytest.raises(ValueError, match="batch_mean_square is None: rs_rej_layer_train takes"):
        F.rs_rej_layer(x, p, p, None)


@pytest.mark.parametrize("impl", ["torch", pytest.param("cpu", marks=NEEDS_CPU)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act": "gelu"}, "act='gelu' is not one of 'none', 'relu', 'silu', 'swish', 'tlu'"),
        ({"statistics": "var"}, "statistics='var' is not one of 'norm', 'std', 'rms'"),
        ({"act": "tlu"}, "v is None, but act='tlu' has one for each channel"),
        ({"v": torch.ones(8)}, "v is given, but act='relu' has none"),
    ],
    ids=str,
)
def test_group_norms_that_do_not_exist(change, message, impl):
    p = torch.ones(8)
    with pytest.raises(ValueError, match=message):
        F.group_norm_act(torch.randn(2, 8, 3, 3), p, p, **change, impl=impl)


@NEEDS_CPU
def test_parameters_that_shrink_before_the_backward_pass_are_refused():
    layer, x = get_norm_act("EvoNormS0", 8), torch.randn(2, 8, 3, 3, requires_grad=True)
    y = layer(x)
    layer.v.data = torch.ones(1)
    with pytest.raises(ValueError, match=r"v of \(1,\) is not \(8,\)"):
        y.sum().backward()


@NEEDS_CPU
@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_beta_may_change_before_the_backward_pass(name, apply_act, draw):
    """No gradient depends on it, of first or second order, and it is not kept."""
    layer = get_norm_act(name, 8, apply_act=apply_act)
    x = draw((2, 8, 3, 3))[0]["x"].requires_grad_()
    found = []
    for changed in (False, True):
        y = layer(x)
        if changed:
            with torch.no_grad():
                layer.bias += 1
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)
        again = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        found.append([*first, again, *torch.autograd.grad(again.sum(), [x, layer.weight])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@NEEDS_CPU
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_numbers_that_are_stored_negated(name):
    """As the imaginary part of what is conjugate; with one element it is contiguous."""
    layer, x = get_norm_act(name, 1).requires_grad_(False), torch.full((1, 1, 1, 1), 3.0)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    assert negated.is_contiguous()
    assert torch.equal(layer(negated), layer(-x))


PRIVATE = ["_C._len_torch_dispatch_stack", "_C._functorch.peek_interpreter_stack"]
PRIVATE += ["autograd._profiler_enabled", "_C._get_tracing_state"]
PRIVATE += ["autograd.forward_ad._current_level"]


@NEEDS_CPU
@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("kind", ["s0", "gn_silu", "bn_relu", "b0", "affine"])
def test_without_a_private_name_of_torch(kind, name, draw, differentiate, monkeypatch):
    """Calls then go through the dispatcher, with the same numbers."""
    arguments, dy = draw((2, 8, 5, 7))
    expected = differentiate(kind, arguments, dy, "cpu")
    assert torch_private.nobody_looks_on()
    with monkeypatch.context() as patch:
        patch.delattr(f"torch.{name}")
        without = runpy.run_path(torch_private.__file__)["nobody_looks_on"]
    assert not without()
    monkeypatch.setattr(operator, "nobody_looks_on", without)
    actual = differentiate(kind, arguments, dy, "cpu")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[k], expected[k]) for k in expected)


@NEEDS_CPU
@pytest.mark.parametrize("names", [["_is_exporting_flag"], ["_is_exporting_flag", "is_exporting"]])
def test_without_torchs_word_for_export(names, monkeypatch):
    """Then a graph for another process still holds plain operations."""
    with monkeypatch.context() as patch:
        for name in names:
            patch.delattr(torch.compiler, name)
        without = runpy.run_path(torch_private.__file__)["is_exporting"]
    assert not without()
    monkeypatch.setattr(kernels, "is_exporting", without)
    program = torch.export.export(get_norm_act("EvoNormS0", 8).eval(), (torch.randn(2, 8, 5, 7),))
    assert "evonorm" not in str(program.graph)


@NEEDS_CPU
@pytest.mark.parametrize("kind", ["s0", "bn_relu", "b0", "affine"])
def test_without_the_dlpack_protocol(kind, draw, differentiate):
    """As before torch 2.10: tensors are read by their attributes, with the same numbers."""
    cpu = kernels.cpu
    for layout in (torch.contiguous_format, torch.channels_last):
        arguments, dy = draw((2, 8, 5, 7), conditional=layout is torch.channels_last)
        arguments["x"] = arguments["x"].to(memory_format=layout)
        expected = differentiate(kind, arguments, dy, "cpu")
        try:
            library.library.prepare(cpu.Unfit, *library.DTYPES, torch.Tensor, None)
            actual = differentiate(kind, arguments, dy, "cpu")
            with pytest.raises(cpu.Unfit):
                cpu.affine_forward(dy, arguments["weight"][..., 1:], arguments["bias"])
        finally:
            library.connect(library.library)
        assert all(torch.equal(actual[k], expected[k]) for k in expected)


@NEEDS_CPU
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_a_call_knows_nothing_of_the_one_before(name):
    """The same layer object with another shape, dtype, format, grad mode, gamma or device."""
    layer, x = get_norm_act(name, 8), torch.randn(2, 8, 3, 5)
    plain = get_norm_act(name, 8, impl="torch")
    layer(x.requires_grad_()).sum().backward()
    x = x.detach()
    for other in (
        x[:1],
        x.bfloat16(),
        x.double(),
        x.to(memory_format=torch.channels_last),
        x.expand(3, 2, 8, 3, 5)[1],
    ):
        torch.testing.assert_close(layer(other), plain(other), rtol=1e-2, atol=1e-2)
        assert layer(other).dtype == other.dtype
    with torch.no_grad():
        assert not layer(x).requires_grad
    assert layer(x).requires_grad
    assert not layer.requires_grad_(False)(x).requires_grad
    layer.weight.data = torch.full((8,), 2.0)
    plain.weight.data = layer.weight.data.clone()
    torch.testing.assert_close(layer(x), plain(x))
    layer.bfloat16()
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-2, atol=1e-2)
    assert layer.to("meta")(x.to("meta")).is_meta
