"""The B series: statistics of a sample's channels, and of the batch's; of RS + rej the latter."""

import math

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.entry import entry, require
from evonorm_plugins.kernels.triton.moments import (
    keep,
    keep_row,
    merge_chunks,
    merge_samples,
    merging,
    moments,
    statistics,
)
from evonorm_plugins.kernels.triton.plan import make_plan
from evonorm_plugins.kernels.triton.rectified import rectified_apply, rectified_forward
from evonorm_plugins.kernels.triton.tiles import (
    count_tiles,
    divide,
    kernel,
    load,
    maximum,
    parameter,
    pixels_from_end,
    place,
    store,
    to_channels,
    wide,
    wide_parameter,
)


@triton.jit
def instance_std(mean, var, eps, KIND: tl.constexpr):
    """sqrt(var + eps) of b0; of b1 and b2 the root of mean of squares + eps."""
    if KIND != "b0":
        # Beside an infinite mean the variance is not a number.
        var = tl.where(tl.abs(mean) == float("inf"), float("inf"), var + mean * mean)
    return tl.sqrt(var + eps)


@triton.jit
def instance_side(x, v, std, KIND: tl.constexpr):
    """The second argument of the maximum: what the sample's own statistic gives."""
    if KIND == "b0":
        side = v * x + std
    elif KIND == "b1":
        side = (x + 1) * std
    else:
        side = std - x
    return side


@kernel
def _batch_forward_kernel(
    x_ptr,  # (N, C, H, W)
    y_ptr,  # out: as x
    weight_ptr,  # gamma: (C,) or (N, C)
    bias_ptr,  # beta: as gamma
    v_ptr,  # (C,) or None
    batch_mean_ptr,  # out: (C,), or None: batch_var is given
    batch_var_ptr,  # likewise out or given
    parts_ptr,  # (3, N, chunks, C) where SOURCE is "parts"
    mean_ptr,  # (N, C), out unless SOURCE is "given"
    var_ptr,  # likewise
    plane: tl.int64,  # of parts: elements from one of the 3 to the next
    rows,  # parts of a channel
    weight_stride,  # of the samples of gamma and beta: 0 or C
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,  # tiles of a chunk of pixels
    chunks,
    KIND: tl.constexpr,  # "b0", "b1" or "b2"
    SOURCE: tl.constexpr,  # of the samples' statistics: "x" (one chunk), "parts", or "given"
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, SOURCE != "x", T)
    if SOURCE == "given":
        mean, var = parameter(mean_ptr, C, at), parameter(var_ptr, C, at)
    else:
        if SOURCE == "x":
            mean, _, var, x = moments(x_ptr, at, True, T)
        else:
            mean, var = merge_chunks(parts_ptr, plane, at, T)
        keep(mean_ptr, var_ptr, mean, var, at, T)
        mean, var = to_channels(mean, T), to_channels(var, T)
    weight = wide_parameter(weight_ptr, weight_stride, at)
    bias = wide_parameter(bias_ptr, weight_stride, at)
    v = wide_parameter(v_ptr, 0, at)
    std = wide(instance_std(mean, var, eps, KIND))
    if batch_mean_ptr is None:
        batch_var = parameter(batch_var_ptr, 0, at)
    else:
        batch_mean, batch_var = merge_samples(parts_ptr, plane, rows, at, T)
        if at.row == 0:
            keep_row(batch_mean_ptr, batch_var_ptr, batch_mean, batch_var, 0, at, T)
        batch_var = to_channels(batch_var, T)
    batch_std = wide(tl.sqrt(batch_var + eps))
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        if not (T.ONE and SOURCE == "x"):
            x = load(x_ptr, tile, 0, True)
        y = divide(x, maximum(batch_std, instance_side(x, v, std, KIND)), T.FAST)
        store(y_ptr, y * weight + bias, tile)


@entry("xgbcooc")
def batch_apply(sizes, kind, eps):
    """EvoNorm-B0, B1, B2 (``kind`` "b0", "b1", "b2") of given statistics: y.

    Of x, weight, bias, v, mean, var, batch_var ``y = x / max(sqrt(batch_var + eps), t) weight +
    bias`` where t of b0, b1 and b2 is ``v x + sqrt(var + eps)``, ``(x + 1) r`` and ``r - x``, with
    ``r = sqrt(var + mean^2 + eps)``. "rs_rej", which has no mean and var: ``y = max(x, 0) /
    sqrt(batch_var + eps) weight + bias``.
    """
    _require_eps(eps)
    plan = make_plan(sizes, 1, 1, chunked=True)
    if kind == "rs_rej":
        finish = rectified_apply(plan, eps)
        return lambda x, weight, bias, v, mean, var, batch_var: finish(x, weight, bias, batch_var)
    apply = _apply(plan, "given", 0, kind, eps)

    def forward(x, weight, bias, v, mean, var, batch_var):
        return apply(x, weight, bias, v, None, batch_var, mean, mean, var)

    return forward


@entry("xgbcc")
def batch_forward(sizes, kind, eps):
    """y, mean and var ``(N, C)``, and the mean and variance ``(C,)`` of the batch.

    Of x, weight, bias, v, batch_var. The last two are empty where ``batch_var`` is given, which is
    used; else they are those of x. In "rs_rej" mean and var are None, and that of the batch is the
    mean of squares.
    """
    _require_eps(eps)
    is_given = not sizes.absent & 1 << 4
    if kind == "rs_rej":
        return rectified_forward(make_plan(sizes, 1, 1, chunked=True), eps, is_given)
    plan = make_plan(sizes, 1, 1, chunked=not is_given)
    source, size, find = statistics(plan)
    apply = _apply(plan, source, size, kind, eps)

    def of_given(x, weight, bias, v, batch_var):
        mean, var, parts = find(x, weight)
        y = apply(x, weight, bias, v, None, batch_var, parts, mean, var)
        return y, mean, var, batch_var.new_empty(0), batch_var.new_empty(0)

    if is_given:
        return of_given
    merge = merging(plan, size, 1) if plan.spread or plan.merged else None

    def forward(x, weight, bias, v, _):
        mean, var, parts = find(x, weight)
        batch_mean = weight.new_empty(plan.channels)
        batch_var = torch.empty_like(batch_mean)
        if merge:
            merge((parts, batch_mean, batch_var))
        own_mean = None if merge else batch_mean
        y = apply(x, weight, bias, v, own_mean, batch_var, parts, mean, var)
        return y, mean, var, batch_mean, batch_var

    return forward


def _require_eps(eps):
    require(0 <= eps < math.inf)


def _apply(plan, source, size, kind, eps):
    """What makes y; statistics of the batch, too, where it is given memory for their mean."""
    constants = {"KIND": kind, "SOURCE": source}
    values = (size, plan.rows, plan.affine_stride, eps)
    launch = plan.launch(_batch_forward_kernel, *values, **constants)

    def apply(x, weight, bias, v, batch_mean, batch_var, parts, mean, var):
        y = torch.empty_like(x)
        launch((x, y, weight, bias, v, batch_mean, batch_var, parts, mean, var))
        return y

    return apply
