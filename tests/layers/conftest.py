"""What the layer tests share: the device, layers with drawn parameters."""

import importlib.util
import os

import numpy as np
import pytest
import torch

import evonorm_plugins
from evonorm_plugins import kernels

EVONORMS = ["EvoNormB0", "EvoNormB1", "EvoNormB2", "EvoNormS0", "EvoNormS1", "EvoNormS2"]
# Other layers with kernels.
BATCH_NORMS = ["BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish"]
FUSED_ROWS = [*BATCH_NORMS, "GN-ReLU", "GN-Swish-1", "GN-Swish", "LN-ReLU", "FRN", "RS + rej"]
# Layers with a formula of our own; the others consist of torch's modules. SyncEvoNorm* are the same
# as EvoNorm* where there is one process: see test_sync.py.
OWN = [*EVONORMS, "FRN", "PixelNorm-ReLU", "Random", "Random + rej", "RS + rej"]


DEVICE = torch.device(os.environ.get("EVONORM_TEST_DEVICE", "cpu"))
FUSED = "triton" if DEVICE.type == "cuda" else "cpu"


IMPLEMENTATIONS = [FUSED, "torch"]
if FUSED == "cpu" and importlib.util.find_spec("triton"):
    IMPLEMENTATIONS.append("triton")  # in the interpreter


def pytest_configure(config):
    for mark in (
        "one_impl: what computes makes no difference",
        "numbers: about the numbers of a kernel; also in Triton's slow interpreter",
    ):
        config.addinivalue_line("markers", mark)


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request, monkeypatch):
    """What computes where a layer says "auto", in turn: for all tests that draw numbers."""
    chosen = {} if request.param == "torch" else {DEVICE.type: request.param}
    monkeypatch.setattr(kernels, "_FUSED", chosen)
    with np.errstate(all="ignore"):  # the interpreter computes with numpy
        yield request.param


def pytest_collection_modifyitems(items):
    """Leaves out what would say nothing new.

    Layers without kernels have one implementation. The interpreter is slow: it runs what is about
    numbers, of the layers whose kernels differ (Sync layers alone are the plain ones).
    """
    layers, rows = set(evonorm_plugins.list_norm_acts()), set(FUSED_ROWS)
    slow = ("GN-Swish", "FRN", "RS + rej")  # one of each kernel

    def says_something_new(item):
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if given.get("impl", FUSED) == FUSED:
            return True
        if item.get_closest_marker("one_impl"):
            return False
        names = {v for v in given.values() if isinstance(v, str)} & layers
        if given["impl"] == "torch":
            return not names or any("EvoNorm" in name for name in names) or names & rows
        return item.get_closest_marker("numbers") and (not names or names & {*EVONORMS, *slow})

    items[:] = filter(says_something_new, items)


@pytest.fixture(params=evonorm_plugins.list_norm_acts())
def every(request):
    """The name of every layer in turn."""
    return request.param


@pytest.fixture(params=OWN)
def own(request):
    """The name of every layer with a formula of our own in turn."""
    return request.param


@pytest.fixture(params=EVONORMS)
def evonorm(request):
    """The name of every EvoNorm in turn."""
    return request.param


@pytest.fixture(scope="session")
def device():
    return DEVICE


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def draw(device, impl):
    """``draw(2, 8, 5, 7)``: standard normal numbers."""

    def draw(*shape, dtype=torch.float32, scale=1, shift=0):
        x = torch.randn(shape, dtype=torch.float64) * scale + shift
        return x.to(device, dtype)

    return draw


@pytest.fixture
def make(device):
    """``make("EvoNormS0", 8)``: a layer whose parameters are not those it starts from.

    It has 4 groups where it has groups: of 8 channels, neither a channel each nor everything.
    """

    def make(name, channels=8, *, dtype=torch.float32, **options):
        if name.startswith(("EvoNormS", "GN-", "Candidate-S")):
            options.setdefault("groups", 4)
        layer = evonorm_plugins.get_norm_act(name, channels, **options).to(device, dtype)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn(channels).to(parameter), alpha=0.5)
            for key, buffer in layer.named_buffers():
                if "running_var" in key:
                    buffer.add_(torch.rand(channels).to(buffer))
        return layer

    return make


@pytest.fixture(scope="session")
def gradients():
    """``gradients(layer, x, dy)``: output ``y`` and all gradients, by name."""

    def gradients(layer, x, dy):
        x = x.detach().requires_grad_()
        y = layer(x)
        inputs = {"x": x, **dict(layer.named_parameters())}
        grads = torch.autograd.grad(y, list(inputs.values()), dy)
        return {"y": y.detach(), **dict(zip(inputs, grads, strict=True))}

    return gradients
