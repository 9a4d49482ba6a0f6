"""A driver for Triton without a GPU: kernels are compiled for sm_90, launches counted and dropped.

What is left is the time that a launch takes on the host, but for that of the CUDA driver itself.
"""

import collections
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from evonorm_plugins.errors import RunError
from evonorm_plugins.kernels import backend

SHARED_BYTES = 232448  # of a block, on sm_90


class Launched(NamedTuple):
    """What a launcher was given."""

    name: str
    hash: str  # of the source, the specialisation and the options of the compiled kernel
    device: int
    stream: int
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]  # in the order of the kernel's parameters, constants included


class Stub:
    """The driver, and the tally of its launches.

    ``device`` and ``streams`` are what it says is current; a test may change them.

    Attributes:
        launches: how many there were, by name of the kernel.
        compiled: hashes of the compiled kernels, by name.
        record: a list that every launch is appended to, or None.
    """

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, int] = collections.defaultdict(int)
        self.launches: collections.Counter[str] = collections.Counter()
        self.record: list[Launched] | None = None
        self.compiled: dict[str, set[str]] = collections.defaultdict(set)
        self.utils = self

    # ---- what Triton asks of a driver ----

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.streams[device]

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spilled registers and most threads."""
        return name, (name, device), 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        name, digest = metadata.name, metadata.hash
        self.compiled[name].add(digest)
        launches = self.launches

        def launch(
            x: int,
            y: int,
            z: int,
            stream: int,
            function: Any,
            packed: Any,
            given: Any,
            entered: Any,
            left: Any,
            *arguments: Any,
        ) -> None:
            launches[name] += 1
            if self.record is not None:
                device = function[1]
                self.record.append(Launched(name, digest, device, stream, (x, y, z), arguments))

        return launch


def install() -> Stub:
    """Make a Stub the driver of this process, in which the Triton kernels then take CPU tensors.

    Call it before Triton launches anything; it stays. What kernels return is not computed.

    Raises:
        RunError: Triton's interpreter is on, or there is no Triton, or an old one.
    """
    try:
        entry = backend("triton").entry
    except RuntimeError as error:
        raise RunError(str(error)) from None
    if entry.INTERPRETED:
        raise RunError("TRITON_INTERPRET is set; a stub of a driver needs Triton's compiler")
    stub = Stub()
    importlib.import_module("triton").runtime.driver.set_active(stub)
    entry.TAKES_CPU = True
    return stub
