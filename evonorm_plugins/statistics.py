"""Variances over the batch, of one process or of many, and their gradients."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from evonorm_plugins.modes import (
    compute_dtype,
    is_captured,
    records_gradient,
    takes_plain_operations,
)
from evonorm_plugins.planes import as_planes
from evonorm_plugins.torch_private import is_transformed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def batch_variance(
    x: Tensor, *, centred: bool = True, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Biased variance of every channel over batch and space, ``(C,)``, and the elements it is over.

    Args:
        x: ``(N, C)`` with any number of spatial dimensions after it; N may be 0.
        centred: False gives the mean of squares instead.
        group: a ``torch.distributed`` process group: the variance is that of the concatenation of
            every rank's ``x``. Counts may differ between ranks, N = 0 included. Ranks are merged by
            count, mean and M2 (Chan, Golub, LeVeque 1979), with one collective here and one in the
            backward pass, which every rank enters.

    Returns:
        ``(variance, count)``: ``(C,)`` in the dtype of the statistics and a scalar tensor.
        The variance over 0 elements is NaN.
    """
    x = as_planes(x)
    if group is None and (takes_plain_operations() or not records_gradient(x)):
        count, _, m2 = local_moments(x, centred=centred)
        return m2 / count, count
    return _BatchVariance.apply(x, centred, group)


def local_moments(x: Tensor, *, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """``(count, mean, M2)`` of every channel over batch and space: scalar, ``(C,)``, ``(C,)``.

    M2 is the sum of squared deviations from the mean; with ``centred=False`` the mean is 0.
    """
    x = x.to(compute_dtype(x))
    count = torch.full(
        (), float(x.shape[0] * x.shape[2] * x.shape[3]), dtype=x.dtype, device=x.device
    )
    if not centred:
        return count, x.new_zeros(x.shape[1]), x.square().sum((0, 2, 3))
    if x.numel() == 0:
        return count, x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return count, mean, var * count


def gather_moments(
    count: Tensor, mean: Tensor, m2: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments ``()``, ``(C,)``, ``(C,)`` of every rank: ``(R,)``, ``(R, C)``, ``(R, C)``."""
    local = torch.cat([count.view(1), mean, m2])
    ranks = dist.get_world_size(group)
    gathered = local.new_zeros(ranks, local.numel())
    gathered[dist.get_rank(group)] = local
    # A sum with zeros gathers, and every backend has it.
    dist.all_reduce(gathered, group=group)
    means, m2s = gathered[:, 1:].split(mean.numel(), 1)
    return gathered[:, 0], means, m2s


def merge_moments(counts: Tensor, means: Tensor, m2s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge ``(R,)``, ``(R, C)``, ``(R, C)`` moments of R parts into those of their union."""
    total = counts.sum()
    share = (counts / total.clamp(min=1))[:, None]
    mean = (share * means).sum(0)
    m2 = (m2s + counts[:, None] * (means - mean).square()).sum(0)
    return total, mean, m2


@torch.no_grad()
def update_moving_average(average: Tensor, value: Tensor, momentum: float) -> None:
    """Move ``average`` by the share ``momentum`` towards ``value``, in place, where that is finite.

    Counted in float32 at least, whatever dtype the average is kept in. One that is beyond the
    largest number of its dtype, 65,504 in float16, becomes that number.

    Raises:
        RuntimeError: a transform of ``torch.func`` is at work that forbids to change the average.
    """
    compute = compute_dtype(average)
    if average.dtype == torch.float16 and not is_captured():
        warnings.warn(
            "moving statistics in float16 end at 65,504: keep the layer in float32 or bfloat16 "
            "(autocast does) where a variance may be larger",
            stacklevel=2,
        )
    before = average if average.dtype == compute else average.to(compute)
    new = before.lerp(value.to(compute), momentum)
    # Selected on the device: asking whether it is finite would wait for it.
    new = torch.where(torch.isfinite(new), new, before)
    if average.dtype != compute:
        limits = torch.finfo(average.dtype)
        new = new.clamp(limits.min, limits.max)
    if not is_transformed():
        average.copy_(new)
        return
    try:
        average.copy_(new)
    except RuntimeError as error:
        raise RuntimeError(
            "moving statistics cannot be updated inside a transform of torch.func that they are no "
            "input of: give them with torch.func.functional_call, or use eval() or freeze()"
        ) from error


class AllReduceSum(torch.autograd.Function):
    """Sum over ranks; its own adjoint, so gradients of every order are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return AllReduceSum.apply(grad, ctx.group), None


class _BatchVariance(torch.autograd.Function):
    """Variance over batch and space, of all ranks of a group where there is one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centred: bool, group: ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        count, mean, m2 = local_moments(x, centred=centred)
        if group is not None:
            count, mean, m2 = merge_moments(*gather_moments(count, mean, m2, group))
        ctx.centred, ctx.group = centred, group
        ctx.save_for_backward(x, mean, count)
        ctx.mark_non_differentiable(count)
        return m2 / count, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
        saved, mean, count = ctx.saved_tensors
        x = saved.to(mean.dtype)
        count = count.clamp(min=1)
        if ctx.group is not None:
            grad = AllReduceSum.apply(grad, ctx.group)
        if torch.is_grad_enabled() and ctx.centred:
            mean = x.sum((0, 2, 3))
            if ctx.group is not None:
                mean = AllReduceSum.apply(mean, ctx.group)
            mean = mean / count
        scale = (grad * (2 / count))[:, None, None]
        return ((x - mean[:, None, None]) * scale).to(saved.dtype), None, None
