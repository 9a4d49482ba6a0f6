"""Group norms with an activation: mean and variance of groups of channels of a sample."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.entry import entry
from evonorm_plugins.kernels.triton.groups import forward_of_groups
from evonorm_plugins.kernels.triton.moments import keep, merge_chunks, moments
from evonorm_plugins.kernels.triton.sample import sigmoid
from evonorm_plugins.kernels.triton.tiles import (
    count_tiles,
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

# STATISTICS and ACT of the kernels are those of functional.group_norm_act.


@triton.jit
def from_mean(x, mean, STATISTICS: tl.constexpr):
    """What is divided by std or rms."""
    z = x
    if STATISTICS == "norm":
        z -= mean
    return z


@kernel
def _group_forward_kernel(
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
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
    SOURCE: tl.constexpr,  # of the statistics: "x" (one chunk), "parts", or "given"
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, SOURCE != "x", T)
    rstd_ptr = mean_ptr + own
    if SOURCE == "given":
        mean = parameter(mean_ptr, C // T.D, at, T.D)
        rstd = parameter(rstd_ptr, C // T.D, at, T.D)
    else:
        if SOURCE == "x":
            mean, _, var, x = moments(x_ptr, at, STATISTICS != "rms", T)
        else:
            mean, var = merge_chunks(parts_ptr, plane, at, T)
        rstd = 1 / tl.sqrt_rn(var + eps)
        keep(mean_ptr, rstd_ptr, mean, rstd, at, T)
        mean, rstd = to_channels(mean, T), to_channels(rstd, T)
    mean = wide(mean)
    scale = wide(parameter(weight_ptr, weight_stride, at) * rstd)
    bias = wide_parameter(bias_ptr, weight_stride, at)
    v = wide_parameter(v_ptr, 0, at)
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        if not (T.ONE and SOURCE == "x"):
            x = load(x_ptr, tile, 0, True)
        z = from_mean(x, mean, STATISTICS) * scale + bias
        if ACT == "relu":
            z = maximum(z, 0.0)
        elif ACT == "tlu":
            z = maximum(z, v)
        elif ACT != "none":
            z = z * sigmoid(z, v, T.FAST)
        store(y_ptr, z, tile)


@entry("xgbc")
def group_forward(sizes, statistics, act, groups, eps):
    """Of x, weight, bias and v y, and mean and rstd ``(2, N, groups)``.

    The mean is 0 where the variance is a mean of squares.
    """
    constants = {"STATISTICS": statistics, "ACT": act}
    centred = statistics != "rms"
    return forward_of_groups(sizes, _group_forward_kernel, groups, eps, centred, constants)
