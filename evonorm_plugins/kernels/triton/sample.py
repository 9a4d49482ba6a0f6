"""The S series: statistics of groups of channels of a sample."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.entry import entry
from evonorm_plugins.kernels.triton.groups import forward_of_groups
from evonorm_plugins.kernels.triton.moments import keep, merge_chunks, moments
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
    mean_ptr,  # (2, N, groups) mean and rstd, out unless SOURCE is "given"
    plane: tl.int64,  # of parts: elements from one of the 3 to the next
    own: tl.int64,  # N groups
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
    rstd_ptr = mean_ptr + own
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


@entry("xgbc")
def sample_forward(sizes, groups, eps, centred):
    """EvoNorm-S0, S1 (v None) and S2 (v None, not ``centred``).

    y, and mean and rstd ``(2, N, groups)``. Of x, weight, bias and v ``y = x sigmoid(v x) rstd
    weight + bias`` with ``rstd = 1 / sqrt(variance + eps)`` of the groups; not ``centred``: the
    mean of squares in place of the variance, and 0 for the mean.
    """
    constants = {"CENTRED": centred}
    return forward_of_groups(sizes, _sample_forward_kernel, groups, eps, centred, constants)
