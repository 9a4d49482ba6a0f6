"""The Triton kernels: where they run, what they return, and that they compile."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from evonorm_plugins import statistics
from evonorm_plugins.kernels.ops import move_average

HAS_CUDA = torch.cuda.is_available()  # otherwise tests/conftest.py asks for the interpreter
triton = pytest.importorskip("triton")
kernels = pytest.importorskip("evonorm_plugins.kernels.triton")

DEVICE = "cuda" if HAS_CUDA else "cpu"


@pytest.mark.skipif(not HAS_CUDA, reason="2.2 billion elements need a GPU")
def test_more_elements_than_32_bits_count(layout):
    shape = (2, 33, 5800, 5800)
    x = torch.randn(shape, device=DEVICE, dtype=torch.float16).to(memory_format=layout)
    one = torch.ones(33, device=DEVICE)
    y, own = kernels.sample_forward(x, one, one, one, 33, 1e-5, True)
    alone = kernels.sample_forward(x[1:], one, one, one, 33, 1e-5, True)[0]
    torch.testing.assert_close(y[1:], alone)
    dx = kernels.sample_backward(y, x, one, one, own, True)[0]
    own = own[:, 1:].contiguous()
    alone = kernels.sample_backward(y[1:], x[1:], one, one, own, True)[0]
    torch.testing.assert_close(dx[1:], alone)


def test_aligned_results(draw_here):
    """Compilers rely on 16 bytes; several results share memory, and 7 floats are not 16 bytes."""
    arguments, dy = draw_here((3, 7, 2, 2))
    x, weight, bias, v = (arguments[k] for k in ("x", "weight", "bias", "v"))
    _, *own = kernels.batch_forward(x, weight, bias, v, None, "b0", 0.1)
    *gradients, none = kernels.batch_backward(dy, x, weight, v, *own, "b0", 0.1)
    assert none is None  # of the variance of x itself
    mean, var, _, batch_var = own
    given = kernels.batch_backward(dy, x, weight, v, mean, var, None, batch_var, "b0", 0.1)
    results = [*own, *gradients, *given]
    assert all(t.data_ptr() % 16 == 0 and t.is_contiguous() for t in results)


@pytest.mark.parametrize("momentum", [0, 0.1, 0.75, 1])
def test_moving_average(momentum):
    """In one launch, as in plain torch; a value that is not finite leaves the average as it was."""
    average = torch.linspace(-2, 3, 300, device=DEVICE)
    value = torch.linspace(5, 1, 300, device=DEVICE)
    value[[3, 280]] = torch.tensor([float("inf"), float("nan")], device=DEVICE)
    expected = average.clone()
    statistics.update_moving_average(expected, value, momentum)
    version = average._version
    move_average(average, value, momentum, "triton")
    assert average._version > version
    torch.testing.assert_close(average, expected)


def test_moving_averages_that_the_kernel_does_not_take(monkeypatch):
    """Plain torch moves them."""
    monkeypatch.setattr(kernels.average, "Launch", None)  # is not called
    value = torch.tensor([4.0, 8.0], device=DEVICE)
    for average in (
        torch.zeros(2, dtype=torch.bfloat16, device=DEVICE),
        torch.zeros(4, device=DEVICE)[::2],
        torch.zeros(2, device=DEVICE)._neg_view(),
    ):
        move_average(average, value, 0.5, "triton")
        assert average.tolist() == [2, 4]


def test_unavailable():
    x = torch.empty(1, 1, 1, 1, device=DEVICE)
    assert kernels.unavailable(x) is None
    assert "x is on meta" in kernels.unavailable(x.to("meta"))


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "capability 8.0"), ((9, 0), None)])
def test_unavailable_on_old_devices(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    kernels._too_old.cache_clear()
    x = types.SimpleNamespace(is_cuda=True, is_cpu=False, get_device=lambda: 0)
    reason = kernels.unavailable(x)
    kernels._too_old.cache_clear()
    assert reason is None if expected is None else expected in reason


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.3.1", "Triton 3.3.1 is older than 3.4"),
        ("3.4.0", None),
        ("3.10.0+git", None),
        (None, "Triton is not installed"),
    ],
)
def test_old_versions_are_refused(version, expected, tmp_path, monkeypatch):
    """They cannot compile the kernels; nor can a folder that happens to be named like Triton."""
    (tmp_path / "__init__.py").write_text(f"__version__ = '{version}'\n")
    spec = types.SimpleNamespace(origin=version and str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert importlib.import_module("evonorm_plugins.kernels")._missing_triton() == expected


def test_compiles_for_hopper(tmp_path):
    script = Path(__file__).with_name("stubbed.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", script, "compiles"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
