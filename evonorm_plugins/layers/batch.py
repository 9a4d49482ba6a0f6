"""EvoNorm-B0, B1 and B2: variance over the batch, cross-replica where asked for (Table 2)."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.kernels.ops import move_average
from evonorm_plugins.layers.base import Fused, NormAct, check_momentum
from evonorm_plugins.planes import as_planes
from evonorm_plugins.series import series_b, series_b_train
from evonorm_plugins.torch_private import is_transformed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self


class BatchDependent(NormAct):
    """Base of the layers that compute something over the batch and keep its moving average.

    Args:
        momentum: weight of the newest batch in a moving average, 0.1 in the authors' code.

    In training mode a transform of ``torch.func`` can update the moving averages only where they
    are among its inputs, as with ``torch.func.functional_call``; elsewhere, and where ``vmap``
    would give every sample its own, that is a RuntimeError. So are statistics of all ranks. In eval
    mode, or frozen, there is nothing to update.

    The other arguments and the errors raised are those of :class:`NormAct`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)
        check_momentum(momentum)
        self.momentum = momentum
        self.frozen = False

    def options(self) -> dict[str, Any]:
        return {"eps": self.eps, "momentum": self.momentum}

    def freeze(self) -> Self:
        """Use the moving averages in training mode too and never change them."""
        self.frozen = True
        return self

    def without_activation(self) -> NormAct:
        layer = super().without_activation()
        assert isinstance(layer, BatchDependent)
        return layer.freeze() if self.frozen else layer

    def uses_batch(self) -> bool:
        """Whether the layer computes batch statistics in the mode it is in."""
        return self.apply_act and self.training and not self.frozen

    def moving_statistics(self) -> dict[str, str]:
        """``{buffer: "mean", "std" or "rms"}``; of the last two it is what the root is taken of."""
        raise NotImplementedError

    def observed(self, observer: Callable[[str, Tensor], object]) -> AbstractContextManager[None]:
        """Context in which ``observer(buffer, x)`` is told what statistics are computed of.

        ``x`` is ``(N, C, H, W)``, or ``(N, 1, H, W)`` for a buffer that all channels share; what
        has another number of spatial dimensions is viewed as ``(N, C, 1, P)``.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return super().extra_repr() + (", frozen" if self.frozen else "")

    def _statistics_group(self) -> ProcessGroup | None:
        """Process group to merge statistics over, or None."""
        return None

    def _takes_from(self, x: Tensor) -> bool:
        """Whether the statistics are to be those of ``x``, not the moving ones."""
        return self.uses_batch() and (x.numel() > 0 or self._statistics_group() is not None)


class BatchStatistics(BatchDependent):
    """Base of the layers that divide by a standard deviation over the batch.

    Buffer ``running_var`` ``(C,)`` starts at ones and is used in eval mode. It averages the biased
    variance, as the authors' does (``torch.nn.BatchNorm2d`` averages the unbiased one). A batch
    whose variance is not finite, an empty or overflown one, leaves it as it was. In float16 it ends
    at 65,504, which a warning says.
    The arguments and the errors raised are those of :class:`BatchDependent`.
    """

    running_var: Tensor
    # False where the statistic is the mean of squares.
    centred = True

    def __init__(
        self,
        num_features: int,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_features, device=device, dtype=dtype, **options)
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def moving_statistics(self) -> dict[str, str]:
        return {"running_var": "std" if self.centred else "rms"}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.running_var.fill_(1)

    @contextlib.contextmanager
    def observed(self, observer: Callable[[str, Tensor], object]) -> Iterator[None]:
        def hook_of(_: nn.Module, inputs: Any) -> None:
            observer("running_var", as_planes(inputs[0]))

        hook = self.register_forward_pre_hook(hook_of)
        try:
            yield
        finally:
            hook.remove()

    def _given_variance(self, x: Tensor) -> Tensor | None:
        """The moving variance where it is what ``x`` is divided by the root of, else None."""
        if self._takes_from(x):
            return None
        # A copy: kept for the backward pass, before which another batch may change the buffer.
        return self.running_var.clone()


def moving_statistics_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the buffers of one module that are moving averages of batch statistics."""
    if isinstance(module, BatchDependent):
        return tuple(module.moving_statistics())
    names = ("running_mean", "running_var")  # torch's
    return tuple(name for name in names if getattr(module, name, None) is not None)


class FusedBatchStatistics(Fused, BatchStatistics):
    """Base of the layers of batch statistics that have kernels."""

    kind: str  # of the operators
    unbiased_running_var = False

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        v = None if self.v_init is None else self._own_v()
        given = self._given_variance(x)
        if given is not None:
            return series_b(self.kind, x, weight, bias, v, given, self.eps, self.impl)
        group = self._statistics_group()
        y, var = series_b_train(self.kind, x, weight, bias, v, group, self.eps, self.impl)
        if self.unbiased_running_var:
            var = var * _unbiasing(x, group)
        move_average(self._buffers["running_var"], var, self.momentum, self.impl)
        return y


class _EvoNormB(FusedBatchStatistics):
    def __init__(
        self, num_features: int, *, unbiased_running_var: bool = False, **options: Any
    ) -> None:
        super().__init__(num_features, **options)
        if not isinstance(unbiased_running_var, bool):
            raise ConfigError(f"{unbiased_running_var=} must be True or False")
        self.unbiased_running_var = unbiased_running_var

    def options(self) -> dict[str, Any]:
        own = {"unbiased_running_var": True} if self.unbiased_running_var else {}
        return {**super().options(), **own}


class EvoNormB0(_EvoNormB):
    """``x / max(std_{b,w,h}(x), v * x + std_{w,h}(x)) * gamma + beta`` (Table 2).

    Args:
        unbiased_running_var: True averages the unbiased variance, as timm's layers do.
        impl: what computes: "auto", "torch", "cpu" or "triton"; see
            :mod:`evonorm_plugins.functional`.

    See :class:`BatchStatistics` for the other arguments.
    """

    v_init = 1
    kind = "b0"


class EvoNormB1(_EvoNormB):
    """``x / max(std_{b,w,h}(x), (x + 1) * rms_{w,h}(x)) * gamma + beta`` (Table 2).

    See :class:`EvoNormB0` for the arguments.
    """

    kind = "b1"


class EvoNormB2(_EvoNormB):
    """``x / max(std_{b,w,h}(x), rms_{w,h}(x) - x) * gamma + beta`` (Table 2).

    See :class:`EvoNormB0` for the arguments.
    """

    kind = "b2"


def statistics_group(process_group: ProcessGroup | None) -> ProcessGroup | None:
    """The process group to merge statistics over, None where there is no other rank.

    ``process_group`` None is the default group.

    Raises:
        RuntimeError: a transform of ``torch.func`` is at work.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = process_group or dist.group.WORLD
    if dist.get_world_size(group) == 1:
        return None
    if is_transformed():
        raise RuntimeError(
            "statistics of all ranks cannot be had inside a transform of torch.func: use eval() or "
            "freeze(), or a layer without them"
        )
    return group


def _unbiasing(x: Tensor, group: ProcessGroup | None) -> Any:
    """What makes the biased variance of ``x``, of all ranks, the unbiased one: n / (n - 1)."""
    if group is None:
        n = x.numel() // x.shape[1]
        # Of one element there is none: infinity times 0, which leaves the moving average as it was.
        return n / (n - 1) if n > 1 else math.inf
    count = torch.full((), float(x.numel() // x.shape[1]), device=x.device)
    dist.all_reduce(count, group=group)
    return count / (count - 1)


class CrossReplica(BatchDependent):
    """Makes a layer of batch statistics a cross-replica one; see :class:`SyncEvoNormB0`."""

    def __init__(
        self, num_features: int, *, process_group: ProcessGroup | None = None, **options: Any
    ) -> None:
        super().__init__(num_features, **options)
        self.process_group = process_group

    def options(self) -> dict[str, Any]:
        return {**super().options(), "process_group": self.process_group}

    def _statistics_group(self) -> ProcessGroup | None:
        return statistics_group(self.process_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A process group cannot be copied, and the copy talks to the same ranks.
        memo[id(self.process_group)] = self.process_group
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class SyncEvoNormB0(CrossReplica, EvoNormB0):
    """:class:`EvoNormB0` with the statistics of all ranks' batches, by count, mean and M2.

    Equals one process on the concatenated batch, outputs and gradients, whatever the number of
    samples and the spatial size on each rank. A rank without samples takes part all the same: its
    forward and its backward pass must run, or the others wait for it.

    Args:
        process_group: the ranks; None is the default group. Without ``torch.distributed``
            initialised, or with one rank, the layer is its plain counterpart.

    See :class:`BatchStatistics` for the other arguments.
    """


class SyncEvoNormB1(CrossReplica, EvoNormB1):
    """:class:`EvoNormB1` with the statistics of all ranks; see :class:`SyncEvoNormB0`."""


class SyncEvoNormB2(CrossReplica, EvoNormB2):
    """:class:`EvoNormB2` with the statistics of all ranks; see :class:`SyncEvoNormB0`."""


_SYNC: dict[type[nn.Module], type[nn.Module]] = {
    EvoNormB0: SyncEvoNormB0,
    EvoNormB1: SyncEvoNormB1,
    EvoNormB2: SyncEvoNormB2,
}


def convert_sync_evonorm(module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
    """Make every EvoNorm-B0, B1 and B2 in ``module`` its cross-replica counterpart, in place.

    The layers stay the same objects, parameters, hooks and training mode included; only their class
    changes. Returns ``module``.
    """
    return change_classes(module, _SYNC, process_group)


def change_classes(
    module: nn.Module,
    counterparts: Mapping[type[nn.Module], type[nn.Module]],
    process_group: ProcessGroup | None,
) -> nn.Module:
    """Give the layers in ``module`` whose class is a key of ``counterparts`` its value."""
    for layer in module.modules():
        if type(layer) in counterparts:
            layer.__class__ = counterparts[type(layer)]
            layer.process_group = process_group  # type: ignore[assignment]
    return module
