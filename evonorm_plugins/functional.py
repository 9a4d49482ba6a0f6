"""The norm-activation functions of the paper.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Table 2 (B series) and Table 3 (S series); the formulas themselves are in
:mod:`evonorm_plugins.formulas`.

Shapes: ``x`` is ``(N, C, H, W)``, or has any other number of spatial dimensions, ``(N, C)``,
``(N, C, L)``, ``(N, C, D, H, W)``: w,h in a formula stands for all of them. ``weight`` (gamma) and
``bias`` (beta) are ``(C,)``, or ``(N, C)`` where each sample has its own; ``v`` is ``(C,)``. Every
variance is biased and centred, eps is added under the square root, statistics are computed in
float32 (float64 for float64 input), and the result has the dtype and memory format of ``x``. Only
``x`` and per-channel or per-group statistics are kept for the backward pass, so a caller may
overwrite the result in place. All gradients can be differentiated again. The transforms of
``torch.func`` and forward-mode differentiation see the plain formula, all of whose values they may
keep.

``impl`` says what computes: ``"torch"`` the plain formula, ``"cpu"`` and ``"triton"`` the fused
kernels, ``"auto"`` the fused kernels for the device of ``x`` where they can run (not for float64)
and the plain formula where they cannot; :func:`evonorm_plugins.show_config` tells.

Raises:
    RuntimeError: an ``impl`` other than ``"auto"`` cannot run on ``x``; says why.
    ValueError: an ``impl`` that does not exist, or parameters of another shape than those above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from evonorm_plugins import formulas
from evonorm_plugins.formulas import effective_groups
from evonorm_plugins.kernels import ops, select
from evonorm_plugins.planes import as_planes
from evonorm_plugins.recompute import apply, relu
from evonorm_plugins.series import batch_norm, series_b, series_b_train, series_s
from evonorm_plugins.statistics import batch_variance

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "batch_norm_act",
    "batch_norm_act_train",
    "batch_variance",
    "channel_affine",
    "effective_groups",
    "evonorm_b0",
    "evonorm_b0_train",
    "evonorm_b1",
    "evonorm_b1_train",
    "evonorm_b2",
    "evonorm_b2_train",
    "evonorm_s0",
    "evonorm_s1",
    "evonorm_s2",
    "frn",
    "group_norm_act",
    "pixelnorm",
    "pixelnorm_relu",
    "random_layer",
    "random_rej_layer",
    "relu",
    "rs_rej_layer",
    "rs_rej_layer_train",
    "swish",
    "tlu",
]


def evonorm_s0(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """EvoNorm-S0: ``x * sigmoid(v * x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3)."""
    return series_s("s0", x, weight, bias, v, groups, eps, impl)


def evonorm_s1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """EvoNorm-S1: ``x * sigmoid(x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3)."""
    return series_s("s1", x, weight, bias, None, groups, eps, impl)


def evonorm_s2(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """EvoNorm-S2: ``x * sigmoid(x) / rms_{w,h,c/g}(x) * gamma + beta`` (Table 3)."""
    return series_s("s2", x, weight, bias, None, groups, eps, impl)


def evonorm_b0(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor,
    batch_var: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """EvoNorm-B0: ``x / max(std_{b,w,h}(x), v * x + std_{w,h}(x)) * gamma + beta`` (Table 2).

    ``batch_var`` ``(C,)`` is the variance under the first square root, such as the moving variance
    in inference. In training :func:`evonorm_b0_train` computes it in passing.
    """
    return series_b("b0", x, weight, bias, v, batch_var, eps, impl)


def evonorm_b1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    batch_var: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """EvoNorm-B1: ``x / max(std_{b,w,h}(x), (x + 1) * rms_{w,h}(x)) * gamma + beta`` (Table 2)."""
    return series_b("b1", x, weight, bias, None, batch_var, eps, impl)


def evonorm_b2(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    batch_var: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """EvoNorm-B2: ``x / max(std_{b,w,h}(x), rms_{w,h}(x) - x) * gamma + beta`` (Table 2)."""
    return series_b("b2", x, weight, bias, None, batch_var, eps, impl)


def evonorm_b0_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor,
    *,
    group: ProcessGroup | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """EvoNorm-B0 with the variance of the batch: ``(y, batch_var)``.

    The same as :func:`evonorm_b0` with :func:`batch_variance` of ``x`` and ``group``, through which
    gradients flow, in fewer passes over memory. The ``batch_var`` ``(C,)`` returned is for moving
    averages and has no gradient; it is NaN where there are no elements.
    """
    return series_b_train("b0", x, weight, bias, v, group, eps, impl)


def evonorm_b1_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: ProcessGroup | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """EvoNorm-B1 with the variance of the batch; see :func:`evonorm_b0_train`."""
    return series_b_train("b1", x, weight, bias, None, group, eps, impl)


def evonorm_b2_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: ProcessGroup | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """EvoNorm-B2 with the variance of the batch; see :func:`evonorm_b0_train`."""
    return series_b_train("b2", x, weight, bias, None, group, eps, impl)


def channel_affine(x: Tensor, weight: Tensor, bias: Tensor, *, impl: str = "auto") -> Tensor:
    """``gamma * x + beta`` per channel: what the paper puts where no activation follows."""
    if x.dim() != 4:
        return channel_affine(as_planes(x), weight, bias, impl=impl).reshape(x.shape)
    direct = ops.is_direct(x, weight, bias)
    impl = select(impl, x, direct)
    if impl == "torch":
        return apply(formulas.affine, x, weight, bias)
    return ops.apply_affine(x, weight, bias, impl, direct=direct)


def pixelnorm_relu(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-8) -> Tensor:
    """PixelNorm-ReLU: ``max(x / rms_c(x) * gamma + beta, 0)``, rms over the channels of a pixel.

    Source: Karras et al. (arXiv 1710.10196), Section 4.2; a row of the paper's Table 5.
    """
    return apply(formulas.pixelnorm_relu, x, weight, bias, eps=eps)


def pixelnorm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-8) -> Tensor:
    """:func:`pixelnorm_relu` without the ReLU."""
    return apply(formulas.pixelnorm, x, weight, bias, eps=eps)


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None = None,
    *,
    act: str = "relu",
    statistics: str = "norm",
    groups: int = 32,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Group normalization and an activation: ``act((x - mean) / std * gamma + beta)``.

    One group is layer normalization over (c, w, h), a group for each channel instance
    normalization; groups that do not divide the channels are reduced as in the S series.

    Args:
        v: ``(C,)``, for the activations that have one.
        act: ``"none"``, ``"relu"``, ``"silu"``, ``"swish"`` (``z * sigmoid(v * z)``) or ``"tlu"``
            (``max(z, v)``).
        statistics: ``"norm"`` as above; ``"std"`` leaves the mean where it is, ``x / std``;
            ``"rms"`` has the mean of squares for the variance, ``x / rms``. The last two without an
            activation are what timm's EvoNorm2dS0a, S1a and S2a are where none is applied.

    Source: Wu, He (arXiv 1803.08494), equations 1 to 7; rows of the paper's Table 3.
    """
    if x.dim() != 4:
        options: dict[str, Any] = {"act": act, "statistics": statistics, "groups": groups}
        y = group_norm_act(as_planes(x), weight, bias, v, eps=eps, impl=impl, **options)
        return y.reshape(x.shape)
    direct = ops.is_direct(x, weight, bias, v)
    impl = select(impl, x, direct)
    groups = effective_groups(x.shape[1], groups)
    if impl == "torch":
        ops.check_group_kind(statistics, act, v)
        tensors = [x, weight, bias] + ([] if v is None else [v])
        options = {"statistics": statistics, "act": act, "groups": groups, "eps": eps}
        return apply(formulas.group, *tensors, **options)
    return ops.apply_group(x, weight, bias, v, statistics, act, groups, eps, impl, direct=direct)


def batch_norm_act(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None = None,
    *,
    act: str = "relu",
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Batch normalization and an activation: ``act((x - mean) / std * gamma + beta)``.

    ``mean`` and ``var`` ``(C,)`` are given, such as the moving averages in inference, and have no
    gradients, as in torch. In training :func:`batch_norm_act_train` computes them in passing.
    ``act`` and ``v`` are as of :func:`group_norm_act`. There are kernels for CPUs alone.

    Source: Ioffe, Szegedy (arXiv 1502.03167), Algorithms 1 and 2; rows of the paper's Table 2.
    """
    return batch_norm(x, weight, bias, v, mean, var, act, eps, impl)[0]


def batch_norm_act_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None = None,
    *,
    act: str = "relu",
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_act` with the mean and variance of the batch: ``(y, mean, var)``.

    Gradients flow through both. Those returned, ``(C,)``, are for moving averages and have none;
    ``var`` is the unbiased one, NaN where there are no elements.
    """
    y, statistics = batch_norm(x, weight, bias, v, None, None, act, eps, impl)
    mean, _, var = statistics
    return y, mean, var


def frn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor | None = None,
    *,
    eps: float = 1e-6,
    impl: str = "auto",
) -> Tensor:
    """Filter response normalization: ``max(x / rms_{w,h}(x) * gamma + beta, threshold)``.

    ``threshold`` ``(C,)`` is the learnable bound of the TLU; None leaves the TLU out.
    Source: Singh, Krishnan (arXiv 1911.09737), equations 1 to 4; a row of the paper's Table 3.
    """
    return group_norm_act(
        x,
        weight,
        bias,
        threshold,
        act="none" if threshold is None else "tlu",
        statistics="rms",
        groups=weight.shape[-1],
        eps=eps,
        impl=impl,
    )


def tlu(x: Tensor, threshold: Tensor) -> Tensor:
    """``max(x, threshold)`` with a threshold ``(C,)`` per channel."""
    return apply(formulas.tlu, x, threshold)


def swish(x: Tensor, v: Tensor) -> Tensor:
    """``x * sigmoid(v * x)`` with v ``(C,)`` per channel."""
    return apply(formulas.swish, x, v)


def random_layer(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Row "Random" of Table 2: ``sign(z) sqrt|z|``, ``z = std_{w,h}(sigmoid(x))``."""
    return apply(formulas.random, x, weight, bias, eps=eps)


def random_rej_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Row "Random + rej" of Table 2: ``tanh(max(x, tanh(x)))``."""
    return apply(formulas.random_rej, x, weight, bias)


def rs_rej_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    batch_mean_square: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Row "RS + rej" of Table 2: ``max(x, 0) / rms_{b,w,h}(x)``; the last argument is rms^2."""
    return series_b("rs_rej", x, weight, bias, None, batch_mean_square, eps, impl)


def rs_rej_layer_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: ProcessGroup | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`rs_rej_layer` with the mean of squares of the batch: ``(y, batch_mean_square)``.

    See :func:`evonorm_b0_train`.
    """
    return series_b_train("rs_rej", x, weight, bias, None, group, eps, impl)
