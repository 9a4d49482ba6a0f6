"""Triton kernels, forward and backward.

The formulas are those of :mod:`evonorm_plugins.formulas`; fp32, fp16 or bf16 is read and written,
everything between is float32. A program works on a tile of channels and pixels of one sample, which
it moves over a *chunk* of the pixels; ``plan`` says how much that is. Which of the two axes is
contiguous is a constant, so one kernel serves both memory formats. To the kernels the B series has
groups too, of one channel. Of a group wider than 64 channels every 64 are a *unit*; other units are
whole groups.

No atomics: sums over programs go through buffers and are added in a fixed order, so results repeat
bit by bit.

The functions take an x of ``(N, C, H, W)`` that is not empty and dense in contiguous or
channels_last format, and dy with its dtype and strides. Parameters and statistics are float32 and
contiguous: weight, bias ``(C,)`` or ``(N, C)``, v, batch_var ``(C,)``. Where a tensor is something
else they raise :class:`Unfit`; entry.py says how they are written. Results that are not like x are
float32 too.
"""

import functools

import torch

from evonorm_plugins.kernels.triton import entry
from evonorm_plugins.kernels.triton.affine import affine_backward, affine_forward
from evonorm_plugins.kernels.triton.average import move_average
from evonorm_plugins.kernels.triton.batches import (
    batch_apply,
    batch_backward,
    batch_forward,
    batch_input_gradient,
    batch_reduce,
)
from evonorm_plugins.kernels.triton.group import group_forward
from evonorm_plugins.kernels.triton.group_gradients import group_backward
from evonorm_plugins.kernels.triton.moments import batch_moments
from evonorm_plugins.kernels.triton.sample import sample_forward
from evonorm_plugins.kernels.triton.sample_gradients import sample_backward

__all__ = [
    "affine_backward",
    "affine_forward",
    "batch_apply",
    "batch_backward",
    "batch_forward",
    "batch_input_gradient",
    "batch_moments",
    "batch_reduce",
    "computes_on",
    "group_backward",
    "group_forward",
    "move_average",
    "sample_backward",
    "sample_forward",
    "unavailable",
]


def computes_on(x):
    """Whether the kernels can be given ``x`` on its device."""
    return x.is_cuda or (entry.TAKES_CPU and x.is_cpu)


def unavailable(x):
    """None if the kernels can run on the device of ``x``, else the reason in one line."""
    if not computes_on(x):
        return f"x is on {x.device.type}; Triton needs a CUDA tensor (or TRITON_INTERPRET=1)"
    return _too_old(x.get_device()) if x.is_cuda else None


@functools.cache  # it is asked with every call of a layer
def _too_old(index):
    """None if the kernels can run on a CUDA device, else the reason."""
    if torch.version.cuda and torch.cuda.get_device_capability(index) < (8, 0):
        return "Triton needs compute capability 8.0"
    return None
