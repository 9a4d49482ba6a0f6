"""Fused EvoNorm kernels, and which of them computes.

``cpu`` is C with OpenMP, ``triton`` is for CUDA and imported where it is first used; both have the
same functions. ``ops`` makes operators of them, with gradients, and checks their arguments.
"""

import functools
import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from types import ModuleType

import torch

from evonorm_plugins.kernels import cpu
from evonorm_plugins.kernels.library import DTYPES
from evonorm_plugins.torch_private import is_exporting, is_transformed

IMPLEMENTATIONS = ("auto", "torch", "cpu", "triton")
# What "auto" means for a type of device.
_FUSED = {"cpu": "cpu", "cuda": "triton"}


def _missing_triton() -> str | None:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return "Triton is not installed"
    # Read, not imported: that takes a second.
    text = Path(spec.origin).read_text()
    version = re.search(r"""^__version__ = ['"]((\d+)\.(\d+).*)['"]""", text, re.MULTILINE)
    if version and (int(version[2]), int(version[3])) < (3, 4):
        return f"Triton {version[1]} is older than 3.4"
    return None


# Why a backend can run on no tensor, or None. Looked up once: a compiler reads them as constants.
_MISSING = {"cpu": cpu.missing(), "triton": _missing_triton()}
_warned: set[str] = set()


@functools.cache
def backend(name: str) -> ModuleType:
    """The module of ``"cpu"`` or ``"triton"``.

    Raises:
        ValueError: another name.
        RuntimeError: it can run on no tensor.
    """
    if name not in _MISSING:
        raise ValueError(f"impl={name!r} is not one of {', '.join(map(repr, _MISSING))}")
    if _MISSING[name]:
        raise RuntimeError(f"impl={name!r} cannot run: {_MISSING[name]}")
    return importlib.import_module(f"{__name__}.{name}")


def select(impl: str, x: torch.Tensor, direct: bool = False) -> str:
    """The implementation that computes ``x``: one of ``IMPLEMENTATIONS`` other than ``"auto"``.

    ``direct`` says that nobody looks on, which is then not asked again; see ``ops.is_direct``.

    Raises:
        ValueError: no such implementation.
        RuntimeError: the one asked for cannot run on ``x``.
    """
    name: str | None = impl
    if direct and x.dtype in DTYPES:
        if impl == "auto":
            name = _FUSED.get("cpu" if x.is_cpu else "cuda" if x.is_cuda else "")
        if name == "cpu" and x.is_cpu and not _MISSING[name]:
            return name
        # Its interpreter, or a stub of its driver, takes tensors of the CPU as well.
        if name == "triton" and not _MISSING[name] and not backend(name).unavailable(x):
            return name
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl == "torch":
        return impl
    if impl != "auto":
        reason = _reason(impl, x)
        if reason:
            raise RuntimeError(f"impl={impl!r} cannot run: {reason}; 'auto' falls back to 'torch'")
        return impl
    name = _FUSED.get(x.device.type)
    if name is None or _is_exported() or _reason(name, x):
        if name and _MISSING[name] and not torch.compiler.is_compiling():
            _warn(name)
        return "torch"
    return name


def select_batch_norm(impl: str, x: torch.Tensor, direct: bool = False) -> str:
    """What computes a batch normalization of ``x``: "cpu", or "torch" for torch's own.

    Kernels of ours are those for CPUs: a GPU has cuDNN's, and a compiler joins the activation to
    torch's. The arguments and errors are those of :func:`select`.
    """
    if impl == "triton":
        raise RuntimeError(
            "impl='triton' cannot run: batch normalization on a GPU is cuDNN's; 'auto' takes that"
        )
    if impl == "auto" and (not x.is_cpu or (not direct and torch.compiler.is_compiling())):
        return "torch"
    name = select(impl, x, direct)
    return name if name == "cpu" else "torch"


def _reason(name: str, x: torch.Tensor) -> str | None:
    """Why a backend cannot run on ``x``, or None."""
    if _MISSING[name]:
        return _MISSING[name]
    if is_transformed():
        return "torch.func and forward-mode differentiation look into plain operations alone"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, and the kernels take {', '.join(map(str, DTYPES))}"
    if name == "triton" and not torch.compiler.is_compiling():
        return backend(name).unavailable(x)
    return None if _FUSED.get(x.device.type) == name else f"x is on {x.device}"


def _is_exported() -> bool:
    # What leaves this process must not need this package: graphs hold plain operations.
    return is_exporting() or torch.jit.is_tracing()


def _warn(name: str) -> None:
    if name not in _warned:
        _warned.add(name)
        warnings.warn(
            f"EvoNorm runs in plain torch, about 10 times slower than fused: {_MISSING[name]}",
            stacklevel=2,
        )


def show_config() -> str:
    """Text that says which implementation ``impl="auto"`` takes on which device, and why."""
    lines = []
    for device, name in _FUSED.items():
        reason = _MISSING[name]
        if reason is None and device == "cuda" and not torch.cuda.is_available():
            reason = "no CUDA device"
        if reason:
            lines.append(f"{device}: torch ({name} kernels cannot run: {reason})")
        elif name == "cpu":
            threads = "OpenMP" if cpu.has_openmp() else "one thread: built without OpenMP"
            lines.append(f"cpu: cpu kernels ({cpu.instruction_set()}, {threads})")
        else:
            lines.append(
                f"cuda: triton kernels (Triton {importlib.import_module('triton').__version__})"
            )
    return "\n".join([*lines, "float64 and other devices: torch"])
