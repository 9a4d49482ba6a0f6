"""EvoNorm-S0, S1 and S2: a sample's own statistics, in groups of channels (paper, Table 3)."""

from evonorm_plugins import functional as F
from evonorm_plugins.layers.base import Fused, NormAct, _check_positive_int


class _GroupStatistics(NormAct):
    def __init__(
        self, num_features, *, apply_act=True, groups=32, eps=1e-5, device=None, dtype=None
    ):
        super().__init__(num_features, apply_act=apply_act, eps=eps, device=device, dtype=dtype)
        _check_positive_int("groups", groups)
        self.groups = groups

    def options(self):
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

    def _norm_act(self, x, weight, bias):
        options = {"groups": self.groups, "eps": self.eps, "impl": self.impl}
        return F.evonorm_s0(x, weight, bias, self.v, **options)


class EvoNormS1(Fused, _GroupStatistics):
    """``x * sigmoid(x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3); see :class:`EvoNormS0`."""

    def _norm_act(self, x, weight, bias):
        options = {"groups": self.groups, "eps": self.eps, "impl": self.impl}
        return F.evonorm_s1(x, weight, bias, **options)


class EvoNormS2(Fused, _GroupStatistics):
    """``x * sigmoid(x) / rms_{w,h,c/g}(x) * gamma + beta`` (Table 3); see :class:`EvoNormS0`."""

    def _norm_act(self, x, weight, bias):
        options = {"groups": self.groups, "eps": self.eps, "impl": self.impl}
        return F.evonorm_s2(x, weight, bias, **options)
