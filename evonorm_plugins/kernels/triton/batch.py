"""The B series: statistics of a sample's channels, and of the batch's; of RS + rej the latter."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.moments import (
    keep,
    keep_row,
    merge_chunks,
    merge_samples,
    moments,
)
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
def batch_forward_kernel(
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
