"""The moving average of a statistic of the batch."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.entry import entry, require
from evonorm_plugins.kernels.triton.launch import Launch
from evonorm_plugins.kernels.triton.plan import OPTIONS
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


@entry("cc")
def move_average(sizes, momentum):
    """``average`` ``(C,)`` moved by the share ``momentum`` towards ``value``, where that is finite.

    In place; autograd is told by the caller.
    """
    require(not sizes.absent)
    grid = (triton.cdiv(sizes.channels, _CHANNELS),)
    values = (float(momentum), sizes.channels)
    launch = Launch(_average_kernel, grid, values, {"K": _CHANNELS, **OPTIONS})

    def move(average, value):
        launch((average, value))

    return move
