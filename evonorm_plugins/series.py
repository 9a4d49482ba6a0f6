"""The two series of the paper, RS + rej and the batch norm, and what computes them.

``kind`` is "s0", "s1", "s2", "b0", "b1", "b2" or "rs_rej", or "s2v": S2 with the v of S0, which
layer graphs can be. Everything else, and the errors raised, are as in
:mod:`evonorm_plugins.functional`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evonorm_plugins import formulas
from evonorm_plugins.formulas import effective_groups
from evonorm_plugins.kernels import ops, select, select_batch_norm
from evonorm_plugins.modes import compute_dtype, is_captured
from evonorm_plugins.planes import as_planes
from evonorm_plugins.recompute import apply
from evonorm_plugins.statistics import batch_variance, local_moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def series_s(
    kind: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    groups: int,
    eps: float,
    impl: str,
) -> Tensor:
    """The S series; v None but in S0 and "s2v"."""
    if x.dim() != 4:
        y = series_s(kind, as_planes(x), weight, bias, v, groups, eps, impl)
        return y.reshape(x.shape)
    direct = ops.is_direct(x, weight, bias, v)
    impl = select(impl, x, direct)
    groups = effective_groups(x.shape[1], groups)
    if impl == "torch":
        _check_v(kind, v)
        tensors = [x, weight, bias] + ([] if v is None else [v])
        return apply(getattr(formulas, kind), *tensors, groups=groups, eps=eps)
    return ops.apply_sample(x, weight, bias, v, kind, groups, eps, impl, direct=direct)


def _check_v(kind: str, v: Tensor | None) -> None:
    if v is None and kind in ("b0", "s0", "s2v"):
        raise ValueError(f"v is None, but kind={kind!r} has one for each channel")


def series_b(
    kind: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    batch_var: Tensor,
    eps: float,
    impl: str,
) -> Tensor:
    """The B series with a given ``batch_var`` ``(C,)``; v None but in B0."""
    if batch_var is None:
        raise ValueError(
            "batch_mean_square is None: rs_rej_layer_train takes that of x"
            if kind == "rs_rej"
            else f"batch_var is None: evonorm_{kind}_train takes that of x"
        )
    if x.dim() != 4:
        y = series_b(kind, as_planes(x), weight, bias, v, batch_var, eps, impl)
        return y.reshape(x.shape)
    direct = ops.is_direct(x, weight, bias, v, batch_var)
    impl = select(impl, x, direct)
    if impl == "torch":
        _check_v(kind, v)
        tensors = [x, weight, bias, batch_var] + ([] if v is None else [v])
        return apply(getattr(formulas, kind), *tensors, eps=eps)
    return ops.apply_batch(x, weight, bias, v, batch_var, kind, eps, impl, direct=direct)[0]


def series_b_train(
    kind: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    group: ProcessGroup | None,
    eps: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """The B series with the variance of the batch: ``(y, batch_var)``; v None but in B0."""
    if x.dim() != 4:
        y, batch_var = series_b_train(kind, as_planes(x), weight, bias, v, group, eps, impl)
        return y.reshape(x.shape), batch_var
    direct = ops.is_direct(x, weight, bias, v)
    impl = select(impl, x, direct)
    if impl != "torch" and group is None:
        return ops.apply_batch(x, weight, bias, v, None, kind, eps, impl, direct=direct)
    if impl != "torch" and not is_captured():
        y, batch_var = ops.apply_batch_of_group(x, weight, bias, v, group, kind, eps, impl)
    else:
        batch_var, count = batch_variance(x, centred=kind != "rs_rej", group=group)
        # Without elements anything will do, but NaN would reach the gradients of parameters.
        used = torch.where(count > 0, batch_var, 1)
        y = series_b(kind, x, weight, bias, v, used, eps, "torch")
    return y, batch_var.detach()


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    act: str,
    eps: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """``(y, statistics)``, as of ``ops.apply_batch_norm``; mean and var None are those of x."""
    if x.dim() != 4:
        y, statistics = batch_norm(as_planes(x), weight, bias, v, mean, var, act, eps, impl)
        return y.reshape(x.shape), statistics
    direct = ops.is_direct(x, weight, bias, v, mean, var)
    impl = select_batch_norm(impl, x, direct)
    if impl != "torch":
        return ops.apply_batch_norm(x, weight, bias, v, mean, var, act, eps, impl, direct=direct)
    ops.check_activation(act, v)
    with torch.no_grad():
        if mean is None or var is None:
            count, mean, m2 = local_moments(x)
            var_of_batch = m2 / count
            unbiased = var_of_batch * (count / (count - 1).clamp(min=1))
            statistics = torch.stack([mean, (var_of_batch + eps).rsqrt(), unbiased])
        else:
            compute = compute_dtype(x)
            statistics = torch.stack([mean.to(compute), (var.to(compute) + eps).rsqrt()])
    given = None if var is None else statistics
    tensors = [x, weight, bias] + ([] if v is None else [v])
    return apply(formulas.batch_norm, *tensors, statistics=given, act=act, eps=eps), statistics
