"""What the host has to know of tensors before kernels of a GPU can be launched on them.

In C where that is there, for it is asked with every call of a layer.
"""

from typing import NamedTuple

import torch

from evonorm_plugins.kernels.library import DLPACK, DTYPES, Unfit, library

ALIGNMENT = 16  # bytes; Triton compiles other kernels for pointers that are no multiples of it
_NO_ADDRESS = 1  # stands for None


class Sizes(NamedTuple):
    """Sizes of a call, the same for all calls that can be launched alike."""

    device: int  # of all tensors: number of a GPU, -1 for the CPU
    samples: int
    channels: int
    pixels: int  # H W
    groups: int  # of the statistics of groups; 0: there are none
    dtype: int  # of x: index of DTYPES
    channels_last: int  # whether x is so, and not contiguous
    per_sample: int  # whether gamma and beta are
    absent: int  # bits: which tensors are None


def read_sizes_in_python(roles, *arguments):
    """Numbers of :class:`Sizes`, a tuple, of tensors that kernels can take as they are.

    Args:
        roles: what each tensor is, a letter for one. ``x``: ``(N, C, H, W)``, not empty, dense in
            contiguous or channels_last format; ``d``: of the shape, dtype and format of x. All
            others are contiguous and of float32: ``g`` gamma ``(C,)`` or ``(N, C)``, ``b`` the same
            as gamma, ``c`` ``(C,)`` or None, ``o`` ``(N, C)`` or None, ``s`` ``(2, N, groups)``,
            ``a`` of any shape, or None.
        arguments: the tensors, and what else there may be behind them.

    Raises:
        Unfit: a tensor is something else, or on another device than the others.
    """
    tensors = dict(enumerate(arguments[: len(roles)]))
    absent = sum(1 << i for i, t in tensors.items() if t is None)
    _require(all(t is not None or roles[i] in "coa" for i, t in tensors.items()))
    present = [t for t in tensors.values() if t is not None]
    _require(present and all(t.layout is torch.strided and not t.is_neg() for t in present))
    _require(len({t.device for t in present}) == 1 and present[0].device.type in ("cpu", "cuda"))
    at = roles.find("x")
    x = None if at < 0 else tensors[at]
    samples, channels, pixels, last = (0, present[0].numel(), 0, 0) if x is None else _sizes_of(x)
    own, each = (channels,), (samples, channels)
    gamma, groups = own, 0
    for i, t in tensors.items():
        role = roles[i]
        if role == "x" or t is None:
            continue
        if role == "d":
            _require(t.shape == x.shape and t.dtype is x.dtype and _is_dense(t, last))
            continue
        if role == "g":
            gamma = each if t.dim() == 2 else own
        elif role == "s":
            _require(t.dim() == 3)
            groups = t.shape[2]
        grouped = 2, samples, groups
        shapes = {"g": gamma, "b": gamma, "c": own, "o": each, "s": grouped, "a": t.shape}
        _require(t.shape == shapes[role] and t.dtype is torch.float32 and t.is_contiguous())
    dtype = 0 if x is None else DTYPES.index(x.dtype)
    device = present[0].get_device()
    return device, samples, channels, pixels, groups, dtype, last, int(gamma == each), absent


def _sizes_of(x):
    """Samples, channels, pixels, and whether channels are last."""
    _require(x.dim() == 4 and x.dtype in DTYPES and x.numel() > 0)
    last = int(not x.is_contiguous())
    _require(_is_dense(x, last))
    samples, channels, height, width = x.shape
    return samples, channels, height * width, last


def _is_dense(t, last):
    return t.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _require(condition):
    if not condition:
        raise Unfit("a tensor is not what the kernels take, or one is missing")


def read_addresses_in_python(tensors):
    """Which of the addresses are not aligned, as bits, and the addresses; 1 for None."""
    found = tuple(_NO_ADDRESS if t is None else t.data_ptr() for t in tensors)
    return sum(1 << i for i, address in enumerate(found) if address % ALIGNMENT), found


if isinstance(library, str) or DLPACK is None:
    read_sizes, read_addresses = read_sizes_in_python, read_addresses_in_python
else:
    read_sizes, read_addresses = library.sizes, library.addresses
