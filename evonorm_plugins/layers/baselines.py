"""The paper's other rows: the pairs EvoNorm is compared with, and the random ones of Table 2.

A name of two parts is norm and activation: ``BNReLU`` is batch normalization, then ReLU. They hold
torch's own norm as ``norm``, so whatever knows torch's layers (weight decay, precise statistics,
freezing) knows them. ``apply_act=False`` is the norm alone. All run in kernels of this package, but
batch normalization on a GPU, which is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from evonorm_plugins import functional as F
from evonorm_plugins.layers.base import Fused, NormAct, check_momentum, check_positive_int
from evonorm_plugins.layers.batch import FusedBatchStatistics
from evonorm_plugins.layers.batch_norm import batch_norm_act

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

    def _found_norm(self) -> Any:
        return self._modules["norm"]  # not as an attribute, which nn.Module finds last of all

    def reset_parameters(self) -> None:
        self.norm.reset_parameters()
        if self.v_init is not None and self.v is not None:
            nn.init.constant_(self.v, self.v_init)

    def release_affine(self) -> Self:
        self.affine = False
        self.norm.register_parameter("weight", None)
        self.norm.register_parameter("bias", None)
        return self


# Where batch normalization is torch's. None keeps its result for the backward pass.
_ACTIVATIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "none": lambda z, v: z,
    "relu": lambda z, v: F.relu(z),
    "silu": lambda z, v: nn.functional.silu(z),
    "swish": F.swish,
    "tlu": F.tlu,
}


class BatchNormAct(Fused, _TorchNormAct):
    """Batch normalization and an activation, on a CPU in one kernel.

    Args:
        momentum: weight of the newest batch in a moving average.
        impl: what computes: "auto", "torch" or "cpu"; see :mod:`evonorm_plugins.functional`.
            "triton" does not exist, for a GPU has cuDNN's batch normalization. ``norm`` is not
            called where the kernel computes, but for one with hooks, which computes itself.

    The other arguments and the errors raised are those of :class:`NormAct`.
    """

    # As of :func:`functional.batch_norm_act`.
    act: ClassVar[str]
    norm: nn.BatchNorm2d

    def __init__(self, num_features: int, *, momentum: float = 0.1, **options: Any) -> None:
        check_momentum(momentum)
        self.momentum = momentum
        super().__init__(num_features, **options)

    def _make_norm(self, **options: Any) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(self.num_features, self.eps, self.momentum, **options)

    def _own_affine(self) -> tuple[Any, Any]:
        return None, None  # the norm applies them

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return self._in_one(x, weight, bias, None, "none")

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        if type(self)._activation is not BatchNormAct._activation:  # that of a layer of one's own
            return self._activation(self._norm(x, weight, bias))
        v = None if self.v_init is None else self._own_v()
        return self._in_one(x, weight, bias, v, self.act)

    def _in_one(self, x: Tensor, weight: Any, bias: Any, v: Any, act: str) -> Tensor:
        norm = self._found_norm()
        y = batch_norm_act(norm, x, weight, bias, v, act, self.impl)
        if y is not None:
            return y
        # Autocast gives some of torch's norms a float32 result.
        z = norm(x).to(x.dtype)
        if weight is not None:
            z = F.channel_affine(z, weight, bias)
        return _ACTIVATIONS[act](z, v)

    def _activation(self, z: Tensor) -> Tensor:
        return _ACTIVATIONS[self.act](z, self.v)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "momentum": self.momentum}


class BNReLU(BatchNormAct):
    """Batch normalization, ``max(z, 0)``."""

    act = "relu"


class BNPReLU(BatchNormAct):
    """Batch normalization, ``max(z, v)``, v learnable per channel from 0, as in Table 2."""

    v_init = 0
    act = "tlu"


class BNSwish1(BatchNormAct):
    """Batch normalization, ``z * sigmoid(z)``."""

    act = "silu"


class BNSwish(BatchNormAct):
    """Batch normalization, ``z * sigmoid(v * z)``, v learnable per channel from 1."""

    v_init = 1
    act = "swish"


class _FusedNormAct(Fused, _TorchNormAct):
    """One of torch's group norms and an activation, in one kernel.

    The parameters are those of ``norm``, which itself is not called.

    Args:
        impl: what computes: "auto", "torch", "cpu" or "triton"; see
            :mod:`evonorm_plugins.functional`.

    The other arguments and the errors raised are those of :class:`NormAct`.
    """

    # As of :func:`functional.group_norm_act`.
    act: ClassVar[str]
    norm: nn.GroupNorm

    def _own_affine(self) -> tuple[Any, Any]:
        norm = self._found_norm()
        own = norm._parameters
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or bias is None:  # constants, or computed, as parametrizations are
            return norm.weight, norm.bias
        return weight, bias

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return self._in_one(x, weight, bias, None, "none")

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        v = None if self.v_init is None else self._own_v()
        return self._in_one(x, weight, bias, v, self.act)

    def _in_one(self, x: Tensor, weight: Any, bias: Any, v: Any, act: str) -> Tensor:
        norm = self._found_norm()
        return F.group_norm_act(
            x, weight, bias, v, act=act, groups=norm.num_groups, eps=norm.eps, impl=self.impl
        )


class _GroupNormAct(_FusedNormAct):
    """Group normalization; groups that do not divide the channels are reduced as in EvoNorm-S0."""

    def __init__(self, num_features: int, *, groups: int = 32, **options: Any) -> None:
        check_positive_int("groups", groups)
        self.groups = groups
        super().__init__(num_features, **options)

    def _make_norm(self, **options: Any) -> nn.GroupNorm:
        groups = F.effective_groups(self.num_features, self.groups)
        return nn.GroupNorm(groups, self.num_features, self.eps, **options)

    def options(self) -> dict[str, Any]:
        return {"groups": self.groups, **super().options()}


class GNReLU(_GroupNormAct):
    """Group normalization, ``max(z, 0)``."""

    act = "relu"


class GNSwish1(_GroupNormAct):
    """Group normalization, ``z * sigmoid(z)``."""

    act = "silu"


class GNSwish(_GroupNormAct):
    """Group normalization, ``z * sigmoid(v * z)``, v learnable from 1."""

    v_init = 1
    act = "swish"


class LNReLU(_FusedNormAct):
    """Layer normalization over (c, w, h) with gamma and beta per channel, ``max(z, 0)``."""

    act = "relu"

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


class FRN(Fused):
    """``max(x / rms_{w,h}(x) * gamma + beta, v)``, v from 0; see :func:`functional.frn`.

    The arguments are those of :class:`GNReLU` without groups.
    """

    v_init = 0

    def __init__(self, num_features: int, *, eps: float = 1e-6, **options: Any) -> None:
        super().__init__(num_features, eps=eps, **options)

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.frn(x, weight, bias, self.v, eps=self.eps, impl=self.impl)

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.frn(x, weight, bias, eps=self.eps, impl=self.impl)


class RandomLayer(NormAct):
    """Row "Random", one random sample of the search space.

    It is ``sqrt(z)``, ``z = std_{w,h}(sigmoid(x))``, constant over space.
    """

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.random_layer(x, weight, bias, eps=self.eps)


class RandomRejLayer(NormAct):
    """Row "Random + rej", a sample that passed rejection: ``tanh(max(x, tanh(x)))``."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.random_rej_layer(x, weight, bias)


class RSRejLayer(FusedBatchStatistics):
    """Row "RS + rej", found by random search with rejection: ``max(x, 0) / rms_{b,w,h}(x)``.

    ``running_var`` averages rms squared.
    """

    centred = False
    kind = "rs_rej"
