"""Launches past Triton's own way from Python, which takes longer than most of the kernels.

``kernel[grid](...)`` finds out with every call which compiled kernel fits its arguments: some 10
microseconds. A Launch lets it do so once for a device and an alignment of the pointers, and from
then on calls what it found.

What Triton does not promise to keep is in this file alone. Where it is not as expected, under
Triton's interpreter, on devices other than CUDA's, and while somebody looks on, every launch goes
Triton's own way.
"""

import re
from typing import NamedTuple

import torch
import triton

from evonorm_plugins.kernels.sizes import read_addresses

# From the first to the last whose launchers were read: both are called alike, and take addresses
# for tensors.
_KNOWN = ((3, 4), (3, 9))
_MOST = 64  # compiled kernels of a Launch


def _private():
    """Triton's drivers, settings and type of compiled kernels; None where they are unknown."""
    version = re.match(r"(\d+)\.(\d+)", triton.__version__)
    found = version and (int(version[1]), int(version[2]))
    if not found or not _KNOWN[0] <= found <= _KNOWN[1]:
        return None
    try:
        from triton import knobs
        from triton.compiler import CompiledKernel
        from triton.runtime.driver import driver

        settings = knobs.runtime
        _ = settings.launch_enter_hook, settings.launch_exit_hook
        if found >= (3, 6):
            _ = settings.add_stages_inspection_hook
        if found >= (3, 5):
            _ = CompiledKernel.run, type(driver).active
        else:  # they are attributes of instances
            _ = vars(CompiledKernel)["__getattribute__"], vars(driver)["active"]
    except (ImportError, AttributeError, KeyError):
        return None
    return driver, settings, CompiledKernel


_PRIVATE = _private()


def _is_watched(kernel, settings):
    """Whether somebody wants to know of launches: a compiler, Triton's profiler, other hooks."""
    # None, a function, or, in newer versions, a chain of some or no functions.
    entered, left = settings.launch_enter_hook, settings.launch_exit_hook
    return (
        getattr(entered, "calls", entered)
        or getattr(left, "calls", left)
        or kernel.pre_run_hooks
        or getattr(settings, "add_stages_inspection_hook", None) is not None
        or torch.compiler.is_compiling()
    )


class _Compiled(NamedTuple):
    """A compiled kernel, ready to be launched."""

    run: object  # its launcher
    function: object
    metadata: object
    kernel: object  # which owns the function


class Launch:
    """A kernel on a grid, with all of its arguments but the first ones: tensors.

    Called with a tuple of those, or None in their place. With every call dtypes are the same, and
    what is None.
    """

    __slots__ = ("_compiled", "_constants", "_grid", "_interpreted", "_kernel", "_rest", "_values")

    def __init__(self, kernel, grid, values, constants):
        """``values``: the arguments that follow the tensors; ``constants``: by name, with options.

        A kernel's parameters are in this order: tensors, values, constants.
        """
        self._kernel, self._grid = kernel, (*grid, 1, 1)[:3]
        self._values, self._constants = values, constants
        self._compiled, self._interpreted = {}, not isinstance(kernel, triton.JITFunction)
        names = getattr(kernel, "arg_names", ())
        self._rest = (*values, *(constants[name] for name in names if name in constants))

    def __call__(self, tensors):
        if self._interpreted or _PRIVATE is None or _is_watched(self._kernel, _PRIVATE[1]):
            self._launch_slowly(tensors)
            return
        driver = _PRIVATE[0].active
        device = driver.get_current_device()
        unaligned, pointers = read_addresses(tensors)
        found = self._compiled.get((device, unaligned))
        if found is None:
            self._keep((device, unaligned), self._launch_slowly(tensors))
            return
        run, function, metadata, _ = found
        stream = driver.get_current_stream(device)
        # None: launch metadata and hooks.
        run(*self._grid, stream, function, metadata, None, None, None, *pointers, *self._rest)

    def _launch_slowly(self, tensors):
        """Triton's own way; what it returns is the compiled kernel."""
        return self._kernel[self._grid](*tensors, *self._values, **self._constants)

    def _keep(self, key, kernel):
        # ROCm's kernels are compiled for the sizes of tensors, too.
        if isinstance(kernel, _PRIVATE[2]) and kernel.metadata.target.backend == "cuda":
            found = _Compiled(kernel.run, kernel.function, kernel.packed_metadata, kernel)
            if len(self._compiled) >= _MOST:
                self._compiled.clear()
            self._compiled[key] = found
