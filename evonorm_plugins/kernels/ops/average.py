"""Moving averages of statistics of the batch."""

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


def move_moments(mean, var, batches, statistics, momentum, impl, direct):
    """Move a batch norm's averages, ``(C,)`` each, towards ``statistics`` of ``apply_batch_norm``.

    As torch does it: ``momentum`` None is the average of all ``batches``, whose number, a tensor or
    None, is one more afterwards. ``direct`` says what :func:`is_direct` has said of all these.
    """
    if direct and momentum is not None and not mean.requires_grad and not mean.is_inference():
        try:
            backend(impl).move_moments(mean, var, batches, statistics, momentum)
        except Unfit:
            pass
        else:
            torch.autograd.graph.increment_version((mean, var, batches))
            return
    if batches is not None:
        batches.add_(1)
    if momentum is None:
        momentum = 0.0 if batches is None else 1 / float(batches)
    new_mean, _, new_var = statistics
    for average, new in ((mean, new_mean), (var, new_var)):
        if average.dtype is new.dtype:
            average.lerp_(new, momentum)
        else:
            average.copy_(average.to(new.dtype).lerp_(new, momentum))


def _moves(name, average, value, momentum):
    """Whether the kernel takes both; it has then been called."""
    try:
        backend(name).move_average(average, value, momentum)
    except Unfit:
        return False
    return True
