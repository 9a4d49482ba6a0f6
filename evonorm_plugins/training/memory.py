"""What a training takes of a machine's memory, and what does not fit into it."""

import ctypes
import os
import resource
import sys

import torch

from evonorm_plugins.data.in_memory import free_memory
from evonorm_plugins.errors import ConfigError


def peak_memory(device):
    """Bytes so far: at most allocated for tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_memory(needed, what, device=None):
    """Raise :class:`ConfigError` where ``what`` takes more bytes than are free.

    Without it the system would give the memory out and end the process once it is written to.

    Args:
        needed: bytes, of what is certain; more may be needed.
        what: begins the message, such as ``"batch_size=1000000"``.
        device: a ``torch.device``; None for the CPU.
    """
    on_gpu = device is not None and device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory()
    if needed > free:
        size = f"{needed / 2**30:,.1f} GiB" if needed < 2**70 else "more memory than can be counted"
        where = "the GPU's memory" if on_gpu else "memory"
        raise ConfigError(
            f"{what}: this takes {size} at least, {free / 2**30:,.1f} GiB of {where} are free"
        )


def weights_size(build):
    """Bytes of the parameters and buffers of the module that ``build()`` makes, without making it.

    Infinite where there are more than can be counted, 0 where it can only be made on a real device.
    """
    try:
        with torch.device("meta"):
            module = build()
    except (RuntimeError, OverflowError, TypeError) as error:
        # A product of sizes beyond 64 bits, or a size.
        return float("inf") if "overflow" in str(error).lower() else 0
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def check_workers(workers):
    """Raise :class:`ConfigError` where ``workers`` processes a rank are a mistake on this machine.

    Each is a whole Python that reads images; those beyond the cores only take memory.
    """
    most = max(16, 4 * (os.cpu_count() or 1))
    if workers > most:
        raise ConfigError(f"workers={workers}: at most {most} on this machine")


def keep_freed_memory():
    """Keep freed memory of the C library's allocator for the next tensors, in this whole process.

    A command that trains on a CPU calls it first. The allocator would give large blocks back to the
    system and get them again, cleared, for every activation of every step. Without that a step of
    resnet50_cifar takes a tenth less CPU time, of mobilenetv2_cifar with BN-ReLU a quarter less, of
    the small BigGAN-deep for CIFAR-10 a seventh less.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large request
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing is given back
