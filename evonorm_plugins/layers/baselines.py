"""The paper's other rows: the pairs EvoNorm is compared with, and what random search found.

A name of two parts is norm and activation: ``BNReLU`` is batch normalization, then ReLU. They hold
torch's own norm as ``norm``, so whatever knows torch's layers (weight decay, precise statistics,
freezing) knows them. ``apply_act=False`` is the norm alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evonorm_plugins import functional as F
from evonorm_plugins.layers.base import NormAct, check_momentum, check_positive_int
from evonorm_plugins.layers.batch import BatchStatistics
from evonorm_plugins.statistics import update_moving_average

if TYPE_CHECKING:
    from typing_extensions import Self


class _TorchNormAct(NormAct):
    """One of torch's norms and an activation; the affine parameters are the norm's."""

    norm: nn.BatchNorm2d | nn.GroupNorm

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)
        del self.weight, self.bias
        self.norm = self._make_norm(device=device, dtype=dtype)

    def _make_norm(self, **options: Any) -> nn.BatchNorm2d | nn.GroupNorm:
        raise NotImplementedError

    def _activation(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        self.norm.reset_parameters()
        if self.v_init is not None and self.v is not None:
            nn.init.constant_(self.v, self.v_init)

    def release_affine(self) -> Self:
        self.affine = False
        self.norm.register_parameter("weight", None)
        self.norm.register_parameter("bias", None)
        return self

    def _own_affine(self) -> tuple[Any, Any]:
        return None, None  # the norm applies them

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        # Autocast gives some of torch's norms a float32 result.
        z = self.norm(x).to(x.dtype)
        return z if weight is None else F.channel_affine(z, weight, bias)

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return self._activation(self._norm(x, weight, bias))


class _ReLU(_TorchNormAct):
    def _activation(self, z: Tensor) -> Tensor:
        return F.relu(z)


class _PReLU(_TorchNormAct):
    """``max(z, v)`` with a learnable v per channel, as in the paper's Table 2."""

    v_init = 0

    def _activation(self, z: Tensor) -> Tensor:
        return F.tlu(z, self.v)


class _Swish1(_TorchNormAct):
    def _activation(self, z: Tensor) -> Tensor:
        return nn.functional.silu(z)


class _Swish(_TorchNormAct):
    """``z * sigmoid(v * z)`` with a learnable v per channel."""

    v_init = 1

    def _activation(self, z: Tensor) -> Tensor:
        return F.swish(z, self.v)


class BatchNormAct(_TorchNormAct):
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
        check_momentum(momentum)
        self.momentum = momentum
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)

    def _make_norm(self, **options: Any) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(self.num_features, self.eps, self.momentum, **options)

    def options(self) -> dict[str, Any]:
        return {"eps": self.eps, "momentum": self.momentum}


class BNReLU(_ReLU, BatchNormAct):
    """Batch normalization, ``max(z, 0)``."""


class BNPReLU(_PReLU, BatchNormAct):
    """Batch normalization, ``max(z, v)``, v learnable from 0."""


class BNSwish1(_Swish1, BatchNormAct):
    """Batch normalization, ``z * sigmoid(z)``."""


class BNSwish(_Swish, BatchNormAct):
    """Batch normalization, ``z * sigmoid(v * z)``, v learnable from 1."""


class _GroupNormAct(_TorchNormAct):
    """Group normalization; groups that do not divide the channels are reduced as in EvoNorm-S0."""

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        groups: int = 32,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive_int("groups", groups)
        self.groups = groups
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)

    def _make_norm(self, **options: Any) -> nn.GroupNorm:
        groups = F.effective_groups(self.num_features, self.groups)
        return nn.GroupNorm(groups, self.num_features, self.eps, **options)

    def options(self) -> dict[str, Any]:
        return {"groups": self.groups, "eps": self.eps}


class GNReLU(_ReLU, _GroupNormAct):
    """Group normalization, ``max(z, 0)``."""


class GNSwish1(_Swish1, _GroupNormAct):
    """Group normalization, ``z * sigmoid(z)``."""


class GNSwish(_Swish, _GroupNormAct):
    """Group normalization, ``z * sigmoid(v * z)``, v learnable from 1."""


class LNReLU(_ReLU, _TorchNormAct):
    """Layer normalization over (c, w, h) with gamma and beta per channel, ``max(z, 0)``."""

    def _make_norm(self, **options: Any) -> nn.GroupNorm:
        return nn.GroupNorm(1, self.num_features, self.eps, **options)


class PixelNormReLU(NormAct):
    """``max(x / rms_c(x) * gamma + beta, 0)``; see :func:`functional.pixelnorm_relu`."""

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        eps: float = 1e-8,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.pixelnorm_relu(x, weight, bias, eps=self.eps)

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.pixelnorm(x, weight, bias, eps=self.eps)


class FRN(NormAct):
    """``max(x / rms_{w,h}(x) * gamma + beta, v)``, v from 0; see :func:`functional.frn`."""

    v_init = 0

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        eps: float = 1e-6,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.frn(x, weight, bias, self.v, eps=self.eps)

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.frn(x, weight, bias, eps=self.eps)


class RandomLayer(NormAct):
    """Row "Random": ``sqrt(z)``, ``z = std_{w,h}(sigmoid(x))``, constant over space."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.random_layer(x, weight, bias, eps=self.eps)


class RandomRejLayer(NormAct):
    """Row "Random + rej": ``tanh(max(x, tanh(x)))``."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.random_rej_layer(x, weight, bias)


class RSRejLayer(BatchStatistics):
    """Row "RS + rej": ``max(x, 0) / rms_{b,w,h}(x)``; ``running_var`` averages rms squared."""

    centred = False

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        rms2 = self._given_variance(x)
        if rms2 is None:
            group = self._statistics_group()
            rms2, count = F.batch_variance(x, centred=self.centred, group=group)
            update_moving_average(self.running_var, rms2, self.momentum)
            # Without elements anything will do, but NaN would reach the gradients of parameters.
            rms2 = torch.where(count > 0, rms2, 1)
        return F.rs_rej_layer(x, weight, bias, rms2, eps=self.eps)
