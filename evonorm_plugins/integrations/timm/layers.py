"""Layers of timm that this package has under other names of parameters, or not by themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evonorm_plugins import functional as F
from evonorm_plugins.layers.base import Fused
from evonorm_plugins.layers.sample import GroupStatistics


class FusedGroupNormAct(Fused, GroupStatistics):
    """A norm over groups of channels and an activation, with parameters of timm's names.

    Args:
        act, statistics: see :func:`functional.group_norm_act`.

    The other arguments and the errors raised are those of :class:`EvoNormS0`.
    """

    def __init__(
        self, num_features: int, *, act: str = "relu", statistics: str = "norm", **options: Any
    ) -> None:
        super().__init__(num_features, **options)
        self.act = act
        self.statistics = statistics

    def options(self) -> dict[str, Any]:
        return {"act": self.act, "statistics": self.statistics, **super().options()}

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return self._group_norm_act(x, weight, bias, None, "none")

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return self._group_norm_act(x, weight, bias, self.v, self.act)

    def _group_norm_act(self, x: Tensor, weight: Any, bias: Any, v: Any, act: str) -> Tensor:
        options: Any = {"groups": self.groups, "eps": self.eps, "impl": self.impl}
        return F.group_norm_act(x, weight, bias, v, act=act, statistics=self.statistics, **options)


class FRNTau(FusedGroupNormAct):
    """FRN whose threshold has the name that it has in timm and in the FRN paper."""

    v_init = 0
    tau: Tensor | None

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(num_features, act="tlu", statistics="rms", group_size=1, **options)
        self.register_parameter("tau", self._parameters.pop("v"))

    @property
    def v(self) -> Tensor | None:
        return self.tau

    def options(self) -> dict[str, Any]:
        return {"eps": self.eps, "impl": self.impl}
