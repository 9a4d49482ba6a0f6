"""The moving average of a statistic of the batch."""

import torch

from evonorm_plugins import statistics
from evonorm_plugins.kernels import cpu
from evonorm_plugins.kernels.ops.arguments import are_ready
from evonorm_plugins.kernels.ops.operator import is_direct


def move_average(average, value, momentum):
    """:func:`evonorm_plugins.statistics.update_moving_average`, in one step on a CPU."""
    if (
        not is_direct(average, value)
        or cpu.missing()
        or not are_ready(average.shape, average, value)
        or average.requires_grad
        or average.is_inference()
    ):
        statistics.update_moving_average(average, value, momentum)
        return
    cpu.move_average(average, value, momentum)
    # What was written past autograd: who kept the average for a backward pass must be told.
    torch.autograd.graph.increment_version(average)
