"""The moving average of a statistic of the batch."""

import torch

from evonorm_plugins import statistics
from evonorm_plugins.kernels import backend, select
from evonorm_plugins.kernels.library import Unfit
from evonorm_plugins.kernels.ops.operator import is_direct


def move_average(average, value, momentum, impl):
    """:func:`evonorm_plugins.statistics.update_moving_average`, in one step of a kernel.

    Where kernels are not what ``impl`` stands for, or somebody looks on, that function does it.
    """
    direct = is_direct(average, value) and not average.requires_grad and not average.is_inference()
    name = select(impl, average, True) if direct and average.dtype is torch.float32 else "torch"
    if name == "torch" or not _moves(name, average, value, momentum):
        statistics.update_moving_average(average, value, momentum)
    else:
        # Who kept the average for a backward pass must hear of what went past autograd.
        torch.autograd.graph.increment_version(average)


def _moves(name, average, value, momentum):
    """Whether the kernel takes both; it has then been called."""
    try:
        backend(name).move_average(average, value, momentum)
    except Unfit:
        return False
    return True
