"""A class-conditional affine transform on top of any norm-activation layer.

Source: Brock, Donahue, Simonyan (arXiv 1809.11096), Appendix B: gain and bias of every norm of the
generator are linear projections of what the sample is conditioned on, the gain centred at 1.
"""

from collections.abc import Callable

from torch import Tensor, fx, nn

from evonorm_plugins.layers.base import NormAct, as_one_operation
from evonorm_plugins.modes import compute_dtype


class ConditionalNormAct(nn.Module):
    """``layer`` with gamma = 1 + gain(condition) and beta = bias(condition) for each sample.

    With a condition of zeros it equals ``layer`` as built. EvoNorms take gamma and beta of each
    sample in the same fused kernel.

    Args:
        layer: any :class:`NormAct`; it gives up its own gamma and beta, and keeps v.
        cond_features: length of a condition.
        projection: ``projection(cond_features, channels)`` makes the module that maps conditions
            ``(N, cond_features)`` to gains and to biases ``(N, channels)``; it should have no bias
            of its own. None: a linear layer.

    Raises:
        TypeError: ``layer`` is not a :class:`NormAct`, and could not be given gamma and beta.
    """

    def __init__(
        self,
        layer: NormAct,
        cond_features: int,
        *,
        projection: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layer, NormAct):
            raise TypeError(
                f"{type(layer).__name__} is not a NormAct: it cannot be given a gamma and a beta"
            )
        if projection is None:
            projection = _linear
        self.layer = layer.release_affine()
        self.gain = projection(cond_features, layer.num_features)
        self.bias = projection(cond_features, layer.num_features)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(N, C, ...)`` and ``(N, cond_features)`` to the shape, dtype and format of ``x``."""
        if isinstance(x, fx.Proxy):
            return as_one_operation(self, x, condition)
        # Not in half precision: near 1 its steps are as large as a gain that was just learnt.
        dtype = compute_dtype(x)
        weight = 1 + self.gain(condition).to(dtype)
        return self.layer(x, weight, self.bias(condition).to(dtype))


def _linear(cond_features: int, channels: int) -> nn.Module:
    return nn.Linear(cond_features, channels, bias=False)
