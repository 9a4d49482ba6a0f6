"""The S series: statistics of groups of channels of a sample."""

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.moments import keep, merge_chunks, moments, statistics
from evonorm_plugins.kernels.triton.plan import make_plan, on_device, sample_stride
from evonorm_plugins.kernels.triton.tiles import (
    count_tiles,
    divide,
    kernel,
    load,
    parameter,
    pixels_from_end,
    place,
    store,
    to_channels,
    wide,
    wide_parameter,
)


@triton.jit
def sigmoid(x, v, FAST: tl.constexpr):
    """sigmoid(v x); v None stands for 1."""
    rate = -1.4426950408889634  # -log2(e)
    if v is not None:
        rate = v * rate
    return divide(1.0, 1 + tl.exp2(x * rate), FAST)


@kernel
def _sample_forward_kernel(
    x_ptr,  # (N, C, H, W)
    y_ptr,  # out: as x
    weight_ptr,  # gamma: (C,) or (N, C)
    bias_ptr,  # beta: as gamma
    v_ptr,  # (C,) or None
    parts_ptr,  # (3, N, chunks, units) where SOURCE is "parts"
    mean_ptr,  # (N, groups), out unless SOURCE is "given"
    rstd_ptr,  # likewise
    plane: tl.int64,  # of parts: elements from one of the 3 to the next
    weight_stride,  # of the samples of gamma and beta: 0 or C
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,  # tiles of a chunk of pixels
    chunks,
    CENTRED: tl.constexpr,
    SOURCE: tl.constexpr,  # of the statistics: "x" (one chunk), "parts", or "given"
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, SOURCE != "x", T)
    if SOURCE == "given":
        rstd = parameter(rstd_ptr, C // T.D, at, T.D)
    else:
        if SOURCE == "x":
            mean, _, var, x = moments(x_ptr, at, CENTRED, T)
        else:
            mean, var = merge_chunks(parts_ptr, plane, at, T)
        rstd = 1 / tl.sqrt_rn(var + eps)
        keep(mean_ptr, rstd_ptr, mean, rstd, at, T)
        rstd = to_channels(rstd, T)
    weight = wide(parameter(weight_ptr, weight_stride, at) * rstd)
    bias = wide_parameter(bias_ptr, weight_stride, at)
    v = wide_parameter(v_ptr, 0, at)
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        if not (T.ONE and SOURCE == "x"):
            x = load(x_ptr, tile, 0, True)
        store(y_ptr, x * sigmoid(x, v, T.FAST) * weight + bias, tile)


@on_device
def sample_forward(x, weight, bias, v, groups, eps, centred):
    """EvoNorm-S0, S1 (v None) and S2 (v None, not ``centred``): y, mean and rstd ``(N, groups)``.

    ``y = x sigmoid(v x) rstd weight + bias`` with ``rstd = 1 / sqrt(variance + eps)`` of the
    groups; not ``centred``: the mean of squares in place of the variance, and 0 for the mean.
    """
    plan = make_plan(x, x.shape[1] // groups, 1)
    found = statistics(plan, x, centred, eps)
    y = torch.empty_like(x)
    plan.run(
        _sample_forward_kernel,
        (x, y, weight, bias, v, found.parts, found.mean, found.spread),
        found.plane,
        sample_stride(weight),
        eps,
        CENTRED=centred,
        SOURCE=found.source,
    )
    return y, found.mean, found.spread
