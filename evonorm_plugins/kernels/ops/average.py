"""The moving average of a statistic of the batch."""

import torch

from evonorm_plugins import statistics
from evonorm_plugins.kernels import cpu
from evonorm_plugins.kernels.ops.operator import is_direct


def move_average(average, value, momentum):
    """:func:`evonorm_plugins.statistics.update_moving_average`, in one step on a CPU."""
    direct = is_direct(average, value) and average.is_cpu and not cpu.missing()
    if direct and not average.requires_grad and not average.is_inference():
        try:
            cpu.move_average(average, value, momentum)
        except cpu.Unfit:
            pass
        else:
            # Who kept the average for a backward pass must hear of what went past autograd.
            torch.autograd.graph.increment_version(average)
            return
    statistics.update_moving_average(average, value, momentum)
