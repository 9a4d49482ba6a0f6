"""Launches past Triton's own way: what they are given, and when they are not taken."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evonorm_plugins.benchmarks import stub
from evonorm_plugins.errors import RunError

HAS_CUDA = torch.cuda.is_available()  # otherwise tests/conftest.py asks for the interpreter
triton = pytest.importorskip("triton")
launch = pytest.importorskip("evonorm_plugins.kernels.triton.launch")
kernels = pytest.importorskip("evonorm_plugins.kernels.triton")
SCRIPT = Path(__file__).with_name("stubbed.py")


@pytest.fixture(scope="module")
def failed():
    """What the checks of stubbed.py that failed say, by name."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", SCRIPT]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "check",
    [
        "launches_what_triton_would",
        "launches_the_same_without_the_library",
        "follows_the_device_and_the_stream",
        "goes_tritons_way",
        "takes_every_value",
        "keeps_few",
        "launches_few_kernels",
        "layers_launch_what_kernels_do",
    ],
)
def test_stubbed(check, failed):
    assert check not in failed, failed[check]


@pytest.mark.skipif(not kernels.entry.INTERPRETED, reason="the stub would stay in this process")
def test_stub_needs_the_compiler():
    with pytest.raises(RunError, match="TRITON_INTERPRET is set"):
        stub.install()


def test_installed_version_is_known():
    assert launch._private() is not None


@pytest.mark.parametrize("version", ["3.3.1", "3.10.0", "4.0.0", "unknown"])
def test_other_versions_go_tritons_way(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    assert launch._private() is None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("triton.compiler", "CompiledKernel"),
        ("triton.compiler.compiler", "CompiledKernel.run"),
        ("triton.runtime.driver", "driver"),
        ("triton.runtime.driver", "DriverConfig.active"),
        ("triton.knobs", "runtime"),
        ("triton.knobs", "runtime_knobs.launch_enter_hook"),
        ("triton.knobs", "runtime_knobs.launch_exit_hook"),
        ("triton.knobs", "runtime_knobs.add_stages_inspection_hook"),
    ],
)
def test_without_private_names(module, name, monkeypatch):
    """As in a Triton that has renamed one."""
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, sys.modules[module])
    if not hasattr(owner, last):
        pytest.skip("the installed version has not had it")
    monkeypatch.delattr(owner, last)
    assert launch._private() is None


@pytest.mark.skipif(not HAS_CUDA, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", ["s0", "b0", "affine"])
def test_captured_in_a_graph(kind, draw_here, differentiate):
    arguments, dy = draw_here((2, 8, 5, 7))
    expected = differentiate(kind, arguments, dy, "triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        differentiate(kind, arguments, dy, "triton")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = differentiate(kind, arguments, dy, "triton")
    graph.replay()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
