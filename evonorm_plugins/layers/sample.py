"""EvoNorm-S0, S1 and S2: a sample's own statistics, in groups of channels (paper, Table 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evonorm_plugins.layers.base import Fused, NormAct, number_of_groups
from evonorm_plugins.series import series_s


class GroupStatistics(NormAct):
    """Base of the layers that have groups of channels; see :class:`EvoNormS0`."""

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        groups: int | None = None,
        group_size: int | None = None,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)
        self.groups = number_of_groups(num_features, groups, group_size)
        self.group_size = group_size

    def options(self) -> dict[str, Any]:
        if self.group_size is None:
            return {"groups": self.groups, "eps": self.eps}
        return {"group_size": self.group_size, "eps": self.eps}


class EvoNormS0(Fused, GroupStatistics):
    """``x * sigmoid(v * x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3).

    Args:
        groups: 32 where neither it nor ``group_size`` is given. Where it does not divide the
            channels, the next smaller number that does is used, as in the authors' code
            (48 channels, 32 groups: 24).
        group_size: channels a group, in place of ``groups``; it has to divide the channels.
        impl: what computes: "auto", "torch", "cpu" or "triton"; see
            :mod:`evonorm_plugins.functional`.

    The other arguments and the errors raised are those of :class:`NormAct`.
    """

    v_init = 1

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        v = self._own_v()
        return series_s("s0", x, weight, bias, v, self.groups, self.eps, self.impl)


class EvoNormS1(Fused, GroupStatistics):
    """``x * sigmoid(x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3); see :class:`EvoNormS0`."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return series_s("s1", x, weight, bias, None, self.groups, self.eps, self.impl)


class EvoNormS2(Fused, GroupStatistics):
    """``x * sigmoid(x) / rms_{w,h,c/g}(x) * gamma + beta`` (Table 3); see :class:`EvoNormS0`."""

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return series_s("s2", x, weight, bias, None, self.groups, self.eps, self.impl)
