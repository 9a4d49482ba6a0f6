"""EvoNorm-B0, B1 and B2: variance over the batch (paper, Table 2), cross-replica where asked for."""

import torch
import torch.distributed as dist
from torch import nn

from evonorm_plugins import functional as F
from evonorm_plugins.layers.base import NormAct


class BatchStatistics(NormAct):
    """Base of the layers that divide by a standard deviation over the batch.

    Args:
        momentum: weight of the newest batch in the moving variance, 0.1 in the authors' code.

    Buffer ``running_var`` ``(C,)`` starts at ones and is used in eval mode. It averages the biased
    variance, as the authors' does (``torch.nn.BatchNorm2d`` averages the unbiased one). A batch
    whose variance is not finite, an empty or overflown one, leaves it as it was.
    The other arguments and the errors raised are those of :class:`NormAct`.
    """

    # False where the statistic is the mean of squares.
    centred = True

    def __init__(
        self, num_features, *, apply_act=True, eps=1e-5, momentum=0.1, device=None, dtype=None
    ):
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum!r} must lie between 0 and 1")
        self.momentum = momentum
        self.frozen = False
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def options(self):
        return {"eps": self.eps, "momentum": self.momentum}

    def freeze(self):
        """Use the moving variance in training mode too and never change it."""
        self.frozen = True
        return self

    def uses_batch(self):
        """Whether the layer computes batch statistics in the mode it is in."""
        return self.apply_act and self.training and not self.frozen

    def extra_repr(self):
        return super().extra_repr() + (", frozen" if self.frozen else "")

    def _statistics_group(self):
        """Process group to merge statistics over, or None."""
        return None

    def _batch_variance(self, x):
        if not self.uses_batch():
            return self.running_var
        group = self._statistics_group()
        if x.numel() == 0 and group is None:
            return self.running_var
        var, _ = F.batch_variance(x, centred=self.centred, group=group)
        self._update_running_var(var.detach())
        return var

    @torch.no_grad()
    def _update_running_var(self, var):
        old = self.running_var
        new = old.lerp(var.to(old.dtype), self.momentum)
        # Selected on the device: asking whether it is finite would wait for it.
        old.copy_(torch.where(torch.isfinite(new), new, old))


class EvoNormB0(BatchStatistics):
    """``x / max(std_{b,w,h}(x), v * x + std_{w,h}(x)) * gamma + beta`` (Table 2).

    See :class:`BatchStatistics` for the arguments.
    """

    v_init = 1

    def _norm_act(self, x):
        var = self._batch_variance(x)
        return F.evonorm_b0(x, self.weight, self.bias, self.v, var, eps=self.eps)


class EvoNormB1(BatchStatistics):
    """``x / max(std_{b,w,h}(x), (x + 1) * rms_{w,h}(x)) * gamma + beta`` (Table 2)."""

    def _norm_act(self, x):
        return F.evonorm_b1(x, self.weight, self.bias, self._batch_variance(x), eps=self.eps)


class EvoNormB2(BatchStatistics):
    """``x / max(std_{b,w,h}(x), rms_{w,h}(x) - x) * gamma + beta`` (Table 2)."""

    def _norm_act(self, x):
        return F.evonorm_b2(x, self.weight, self.bias, self._batch_variance(x), eps=self.eps)


class _CrossReplica:
    """Statistics of the batch of all ranks, by count, mean and M2.

    Equals one process on the concatenated batch, outputs and gradients, whatever the number of
    samples and the spatial size on each rank. A rank without samples takes part all the same: its
    forward and its backward pass must run, or the others wait for it.

    ``process_group`` None is the default group; without ``torch.distributed`` initialised, or with
    one rank, the layer is its plain counterpart.
    """

    def __init__(self, num_features, *, process_group=None, **options):
        super().__init__(num_features, **options)
        self.process_group = process_group

    def options(self):
        return {**super().options(), "process_group": self.process_group}

    def _statistics_group(self):
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def __deepcopy__(self, memo):
        # A process group cannot be copied, and the copy talks to the same ranks.
        if self.process_group is not None:
            memo[id(self.process_group)] = self.process_group
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        from copy import deepcopy

        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


class SyncEvoNormB0(_CrossReplica, EvoNormB0):
    __doc__ = f"Cross-replica :class:`EvoNormB0`.\n\n    {_CrossReplica.__doc__}"


class SyncEvoNormB1(_CrossReplica, EvoNormB1):
    __doc__ = f"Cross-replica :class:`EvoNormB1`.\n\n    {_CrossReplica.__doc__}"


class SyncEvoNormB2(_CrossReplica, EvoNormB2):
    __doc__ = f"Cross-replica :class:`EvoNormB2`.\n\n    {_CrossReplica.__doc__}"


_SYNC = {EvoNormB0: SyncEvoNormB0, EvoNormB1: SyncEvoNormB1, EvoNormB2: SyncEvoNormB2}


def convert_sync_evonorm(module, process_group=None):
    """Replace every EvoNorm-B0, B1 and B2 in ``module`` by its cross-replica counterpart.

    Parameters and buffers are the same objects as before, so optimizers stay valid. Returns the
    module, or its replacement where ``module`` is such a layer itself.
    """
    if type(module) in _SYNC:
        sync = _SYNC[type(module)](
            module.num_features,
            apply_act=module.apply_act,
            process_group=process_group,
            device="meta",
            **module.options(),
        )
        sync._parameters = module._parameters
        sync._buffers = module._buffers
        sync.frozen = module.frozen
        return sync.train(module.training)
    for name, child in module.named_children():
        converted = convert_sync_evonorm(child, process_group)
        if converted is not child:
            setattr(module, name, converted)
    return module
