"""Variances over the batch, of one process or of many, and their gradients."""

import torch
import torch.distributed as dist


def is_captured():
    """Whether a compiler, an exporter or a tracer looks on.

    A compiler decides itself what to keep, and a traced graph must hold plain operations.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def records_gradient(*tensors):
    """Whether autograd records what is computed from ``tensors``."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def compute_dtype(x):
    """The dtype of statistics and arithmetic: float64 for float64, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def batch_variance(x, *, centred=True, group=None):
    """Biased variance of every channel over batch and space, ``(C,)``, and the elements it is over.

    Args:
        x: ``(N, C, H, W)``; N may be 0.
        centred: False gives the mean of squares instead.
        group: a ``torch.distributed`` process group: the variance is that of the concatenation of
            every rank's ``x``. Counts may differ between ranks, N = 0 included. Ranks are merged by
            count, mean and M2 (Chan, Golub, LeVeque 1979), with one collective here and one in the
            backward pass, which every rank enters.

    Returns:
        ``(variance, count)``: ``(C,)`` in the dtype of the statistics and a scalar tensor.
        The variance over 0 elements is NaN.
    """
    if group is None and (is_captured() or not records_gradient(x)):
        count, _, m2 = local_moments(x, centred=centred)
        return m2 / count, count
    return _BatchVariance.apply(x, centred, group)


def local_moments(x, *, centred=True):
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


def gather_moments(count, mean, m2, group):
    """The moments ``()``, ``(C,)``, ``(C,)`` of every rank: ``(R,)``, ``(R, C)``, ``(R, C)``."""
    local = torch.cat([count.view(1), mean, m2])
    ranks = dist.get_world_size(group)
    gathered = local.new_zeros(ranks, local.numel())
    gathered[dist.get_rank(group)] = local
    # A sum with zeros gathers, and every backend has it.
    dist.all_reduce(gathered, group=group)
    return gathered[:, 0], *gathered[:, 1:].split(mean.numel(), 1)


def merge_moments(counts, means, m2s):
    """Merge ``(R,)``, ``(R, C)``, ``(R, C)`` moments of R parts into those of their union."""
    total = counts.sum()
    share = (counts / total.clamp(min=1))[:, None]
    mean = (share * means).sum(0)
    m2 = (m2s + counts[:, None] * (means - mean).square()).sum(0)
    return total, mean, m2


class AllReduceSum(torch.autograd.Function):
    """Sum over ranks; its own adjoint, so gradients of every order are summed as well."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return AllReduceSum.apply(grad, ctx.group), None


class _BatchVariance(torch.autograd.Function):
    """Variance over batch and space, of all ranks of a group where there is one."""

    @staticmethod
    def forward(ctx, x, centred, group):
        count, mean, m2 = local_moments(x, centred=centred)
        if group is not None:
            count, mean, m2 = merge_moments(*gather_moments(count, mean, m2, group))
        ctx.centred, ctx.group = centred, group
        ctx.save_for_backward(x, mean, count)
        ctx.mark_non_differentiable(count)
        return m2 / count, count

    @staticmethod
    def backward(ctx, grad, _):
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
