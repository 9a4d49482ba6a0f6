"""Layers of timm that this package has in another form only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from evonorm_plugins import functional as F
from evonorm_plugins.layers import FRN


class FRNTau(FRN):
    """:class:`FRN` whose threshold has the name that it has in timm and in the FRN paper."""

    tau: Tensor | None

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.register_parameter("tau", self._parameters.pop("v"))

    @property
    def v(self) -> Tensor | None:
        return self.tau


class FRNReLU(FRN):
    """``max(x / rms_{w,h}(x) * gamma + beta, 0)``."""

    v_init = None  # type: ignore[assignment]

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.relu(self._norm(x, weight, bias))


class FRNSiLU(FRN):
    """``z * sigmoid(z)``, ``z = x / rms_{w,h}(x) * gamma + beta``."""

    v_init = None  # type: ignore[assignment]

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return nn.functional.silu(self._norm(x, weight, bias))
