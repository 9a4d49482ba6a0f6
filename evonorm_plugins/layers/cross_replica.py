"""Statistics over the batches of all ranks, for every layer that has batch statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evonorm_plugins.layers.baselines import RSRejLayer
from evonorm_plugins.layers.batch import (
    CrossReplica,
    change_classes,
    convert_sync_evonorm,
    statistics_group,
)
from evonorm_plugins.planes import as_planes
from evonorm_plugins.statistics import (
    gather_moments,
    local_moments,
    merge_moments,
    update_moving_average,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SyncRSRejLayer(CrossReplica, RSRejLayer):
    """:class:`RSRejLayer` with the statistics of all ranks; see :class:`SyncEvoNormB0`."""


class _CrossReplicaBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch normalization with the mean and variance of all ranks' batches.

    Unlike ``torch.nn.SyncBatchNorm`` it runs on CPUs too, merges by count, mean and M2, and keeps
    the unbiased moving variance of the concatenated batch. ``process_group`` None is the default
    group; without one, or with one rank, it is torch's own.
    """

    process_group: ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        uses_batch = self.training or self.running_mean is None
        group = statistics_group(self.process_group) if uses_batch else None
        if group is None:
            return super().forward(x)
        self._check_input_dim(x)
        parameters = self.weight, self.bias, self.eps, group
        y, mean, var, count = _BatchNorm.apply(as_planes(x), *parameters)
        if self.training and self.track_running_stats:
            self._update(mean, var, count)
        return y.reshape(x.shape)

    def _update(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        tracked = self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        share = self.momentum if self.momentum is not None else 1 / float(tracked)
        unbiased = var * (count / (count - 1).clamp(min=1))
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            update_moving_average(getattr(self, name), new, share)


class CrossReplicaBatchNorm1d(_CrossReplicaBatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` with all ranks' batches; see :class:`CrossReplicaBatchNorm2d`."""


class CrossReplicaBatchNorm2d(_CrossReplicaBatchNorm, nn.BatchNorm2d):
    __doc__ = _CrossReplicaBatchNorm.__doc__


class CrossReplicaBatchNorm3d(_CrossReplicaBatchNorm, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` with all ranks' batches; see :class:`CrossReplicaBatchNorm2d`."""


class _BatchNorm(torch.autograd.Function):
    """One collective in each direction; every rank enters both."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, mean, m2 = local_moments(x)
        count, mean, m2 = merge_moments(*gather_moments(count, mean, m2, group))
        var = m2 / count.clamp(min=1)
        gamma, beta = (None if p is None else p.to(mean.dtype) for p in (weight, bias))
        y = nn.functional.batch_norm(x.to(mean.dtype), mean, var, gamma, beta, eps=eps)
        rstd = (var + eps).rsqrt()
        ctx.group = group
        ctx.save_for_backward(x, weight, mean, rstd, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, count = ctx.saved_tensors
        dy = dy.to(mean.dtype)
        centred = x.to(mean.dtype) - mean[:, None, None]
        dbias = dy.sum((0, 2, 3))
        dweight = (dy * centred).sum((0, 2, 3)) * rstd
        # Parameter gradients stay local: DistributedDataParallel averages those.
        total = torch.stack([dbias, dweight])
        torch.distributed.all_reduce(total, group=ctx.group)
        total = total / count.clamp(min=1)
        scale = rstd if weight is None else rstd * weight.to(mean.dtype)
        dx = centred.mul_((-total[1] * rstd)[:, None, None]).add_(dy)
        dx = dx.sub_(total[0][:, None, None]).mul_(scale[:, None, None]).to(x.dtype)
        if weight is None:
            return dx, None, None, None, None
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


# Class of a layer with batch statistics -> its cross-replica counterpart, EvoNorms aside.
COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    RSRejLayer: SyncRSRejLayer,
    nn.BatchNorm1d: CrossReplicaBatchNorm1d,
    nn.BatchNorm2d: CrossReplicaBatchNorm2d,
    nn.BatchNorm3d: CrossReplicaBatchNorm3d,
}


def convert_cross_replica(
    module: nn.Module, process_group: ProcessGroup | None = None
) -> nn.Module:
    """Give every layer of batch statistics in ``module`` those of all ranks, in place.

    EvoNorm-B0, B1 and B2, "RS + rej", layer graphs, and every ``BatchNorm1d``, ``2d`` and ``3d``
    (those of BN-ReLU and its kin). The layers stay the same objects with the same keys; only their
    class changes. Returns ``module``.
    """
    convert_sync_evonorm(module, process_group)
    return change_classes(module, COUNTERPARTS, process_group)
