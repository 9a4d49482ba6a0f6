"""The moving average of a statistic of the batch."""

import functools

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.launch import Launch
from evonorm_plugins.kernels.triton.plan import OPTIONS, on_device
from evonorm_plugins.kernels.triton.tiles import kernel

_CHANNELS = 256  # of a program


@kernel
def _average_kernel(
    average_ptr,  # (C,), changed
    value_ptr,  # (C,)
    share,  # of the value in what comes of both
    C,
    K: tl.constexpr,  # channels of a program
):
    c = tl.program_id(0) * K + tl.arange(0, K)
    average = tl.load(average_ptr + c, c < C, 0)
    value = tl.load(value_ptr + c, c < C, 0)
    step = value - average
    # From the nearer end, as torch.lerp: a share of 1 gives the value itself.
    moved = tl.where(share < 0.5, average + share * step, value - (1 - share) * step)
    tl.store(average_ptr + c, moved, (c < C) & (tl.abs(moved) < float("inf")))


@functools.lru_cache(256)
def _launch(channels, share):
    grid = (triton.cdiv(channels, _CHANNELS),)
    return Launch(_average_kernel, grid, (share, channels), {"K": _CHANNELS, **OPTIONS})


def fits(average, value):
    """Whether :func:`move_average` can be given both, on any device."""
    float32 = torch.float32
    return (
        average.dtype is float32
        and value.dtype is float32
        and average.dim() == 1
        and average.shape == value.shape
        and average.numel() > 0
        and average.is_contiguous()
        and value.is_contiguous()
        and average.device == value.device
        and not average.is_neg()
        and not value.is_neg()
    )


@on_device
def move_average(average, value, momentum):
    """``average`` ``(C,)`` moved by the share ``momentum`` towards ``value``, where that is finite.

    In place; autograd is told by the caller.
    """
    _launch(average.numel(), float(momentum))((average, value))
