"""Which implementation runs, and what is said where one cannot."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch

import evonorm_plugins
from evonorm_plugins import functional as F
from evonorm_plugins import get_norm_act, kernels
from evonorm_plugins.kernels import library

NEEDS_CPU = pytest.mark.skipif(
    kernels.cpu.missing() is not None, reason=f"no CPU kernels: {kernels.cpu.missing()}"
)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("impl", kernels.IMPLEMENTATIONS)
def test_a_direct_call_selects_the_same(impl, dtype, device, monkeypatch):
    """By the short way and by the long one; backends as if all were there."""
    x = SimpleNamespace(device=torch.device(device), dtype=dtype)
    x.is_cpu, x.is_cuda = device == "cpu", device == "cuda"
    triton = SimpleNamespace(unavailable=lambda x: None if x.is_cuda else "x is on cpu")
    monkeypatch.setattr(kernels, "_MISSING", {"cpu": None, "triton": None})
    monkeypatch.setattr(kernels, "backend", lambda name: triton)

    def selected(direct):
        try:
            return kernels.select(impl, x, direct)
        except RuntimeError as error:
            return str(error)

    assert selected(True) == selected(False)
    if impl == "auto" and dtype is not torch.float64:
        assert selected(True) == {"cpu": "cpu", "cuda": "triton"}[device]
        monkeypatch.setattr(kernels, "_FUSED", {})  # "auto" then means no backend
        assert selected(True) == selected(False) == "torch"


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


@NEEDS_CPU
def test_a_library_of_another_version_is_not_used(monkeypatch):
    """One that was built before the package was updated."""
    monkeypatch.setattr(library.library, "INTERFACE", 0)
    assert re.match(r"_evonorm is of another version of the package; ", library.load())


def test_a_library_that_is_no_module_is_not_used(monkeypatch):
    """One that was built when the kernels were called in another way, or a damaged one."""

    def refuse(name):
        raise ImportError("dynamic module does not define module export function")

    monkeypatch.setattr(library.importlib, "import_module", refuse)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: name)
    reason = library.load()
    assert re.match(r"_evonorm cannot be loaded \(dynamic module .*install the package", reason)
