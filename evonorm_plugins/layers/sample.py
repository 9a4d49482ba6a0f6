"""EvoNorm-S0, S1 and S2: a sample's own statistics, in groups of channels (paper, Table 3)."""

from typing import Any

import torch
from torch import Tensor

from evonorm_plugins import functional as F
from evonorm_plugins.layers.base import Fused, NormAct, check_positive_int


class _GroupStatistics(NormAct):
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
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)
        check_positive_int("groups", groups)
        self.groups = groups

    def options(self) -> dict[str, Any]:
        return {"groups": self.groups, "eps": self.eps}


class EvoNormS0(Fused, _GroupStatistics):
    """``x * sigmoid(v * x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3).

    Args:
        groups: where it does not divide the channels, the next smaller number that does is used, as
            in the authors' code (48 channels, 32 groups: 24).

        impl: what computes: "auto", "torch", "cpu" or "triton"; see
            :mod:`evonorm_plugins.functional`.

    The other arguments and the errors raised are those of :class:`NormAct`.
    """

    v_init = 1

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        v = self._own_v()
        return F.series_s("s0", x, weight, bias, v, self.groups, self.eps, self.impl)


class EvoNormS1(Fused, _GroupStatistics):
    """``x * sigmoid(x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3); see :class:`EvoNormS0`."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.series_s("s1", x, weight, bias, None, self.groups, self.eps, self.impl)


class EvoNormS2(Fused, _GroupStatistics):
    """``x * sigmoid(x) / rms_{w,h,c/g}(x) * gamma + beta`` (Table 3); see :class:`EvoNormS0`."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.series_s("s2", x, weight, bias, None, self.groups, self.eps, self.impl)
