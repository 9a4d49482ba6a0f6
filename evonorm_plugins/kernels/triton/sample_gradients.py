"""The gradients of the S series."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.buffers import add_rows
from evonorm_plugins.kernels.triton.entry import entry
from evonorm_plugins.kernels.triton.groups import backward_of_groups
from evonorm_plugins.kernels.triton.sample import sigmoid
from evonorm_plugins.kernels.triton.tiles import (
    add_chunks,
    count_tiles,
    kernel,
    load,
    parameter,
    pixels,
    pixels_from_end,
    place,
    store,
    sums,
    to_channels,
    unit_indices,
    wide,
    wide_parameter,
)


@triton.jit
def _terms(dy_ptr, x_ptr, v, tile, FAST: tl.constexpr):
    """dy, x and what a tile adds to three sums: dy f, dy and dy df/dv, where f = x sigmoid(v x)."""
    dy = load(dy_ptr, tile, 0, False)
    x = load(x_ptr, tile, 1, False)  # not 0, for v may be infinite
    s = sigmoid(x, v, FAST)
    f = x * s
    return dy, x, dy * f, dy, dy * x * (f * (1 - s))


@triton.jit
def _chunk_sums(dy_ptr, x_ptr, sums_ptr, plane, at, weight, v, rstd, T: tl.constexpr):
    """Store the sums of a chunk; sum of weight dy f of units [U], first tiles of dy and x."""
    dy, x, scale, shift, slope = _terms(dy_ptr, x_ptr, v, pixels(at.first, at, T), T.FAST)
    if not T.ONE:
        for start in range(at.first + T.P, at.end, T.P):
            terms = _terms(dy_ptr, x_ptr, v, pixels(start, at, T), T.FAST)
            scale += terms[2]
            shift += terms[3]
            slope += terms[4]
    scale = sums(scale, T.K, T)
    sums_ptr += at.row * at.C + at.c
    tl.store(sums_ptr, scale * rstd, at.inside)
    tl.store(sums_ptr + plane, sums(shift, T.K, T), at.inside)
    if v is not None:
        tl.store(sums_ptr + 2 * plane, sums(slope, T.K, T) * weight * rstd, at.inside)
    return tl.sum(tl.reshape(scale * weight, [T.U, T.PAD]), 1), dy, x


@triton.jit
def _store_dx(
    dy_ptr,
    x_ptr,
    dx_ptr,
    dy_tile,
    x_tile,
    at,
    weight,
    v,
    mean,
    rstd,
    total,
    CENTRED: tl.constexpr,
    AGAIN: tl.constexpr,
    T: tl.constexpr,
):
    """dx from the sums ``total`` [U] of a program's groups; AGAIN: the tiles are to be read."""
    pull = rstd * rstd * rstd * to_channels(total, T) / (at.HW * T.D).to(tl.float32)
    scale, pull = wide(weight * rstd), wide(pull)
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        if AGAIN:
            dy = load(dy_ptr, tile, 0, True)
            x = load(x_ptr, tile, 0, True)
        else:
            dy, x = dy_tile, x_tile
        s = sigmoid(x, v, T.FAST)
        slope = x * s * (1 - s)
        if v is not None:
            slope *= v
        z = x
        if CENTRED:
            z -= mean
        store(dx_ptr, dy * scale * (s + slope) - pull * z, tile)


@kernel
def _sample_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (2, N, groups) mean and rstd
    sums_ptr,  # out: (2 or 3, N, C), for dweight, dbias, dv
    plane: tl.int64,  # of sums: elements from one of them to the next
    own: tl.int64,  # N groups
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    CENTRED: tl.constexpr,
    T: tl.constexpr,
):
    """All of it, where a program has whole groups."""
    at = place(C, HW, chunk, chunks, False, T)
    rstd_ptr = mean_ptr + own
    weight = parameter(weight_ptr, weight_stride, at)
    mean = wide_parameter(mean_ptr, C // T.D, at, T.D)
    rstd = parameter(rstd_ptr, C // T.D, at, T.D)
    v = wide_parameter(v_ptr, 0, at)
    total, dy, x = _chunk_sums(dy_ptr, x_ptr, sums_ptr, plane, at, weight, v, rstd, T)
    _store_dx(dy_ptr, x_ptr, dx_ptr, dy, x, at, weight, v, mean, rstd, total, CENTRED, not T.ONE, T)


@kernel
def _sample_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (2, N, groups) mean and rstd
    sums_ptr,  # out: (2 or 3, N, chunks, C), for dweight, dbias, dv
    parts_ptr,  # out: (N, chunks, units) sums of weight dy x sigmoid(v x)
    plane: tl.int64,  # of sums: elements from one of them to the next
    own: tl.int64,  # N groups
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    T: tl.constexpr,
):
    """Of chunks the first step."""
    at = place(C, HW, chunk, chunks, False, T)
    rstd_ptr = mean_ptr + own
    weight = parameter(weight_ptr, weight_stride, at)
    rstd = parameter(rstd_ptr, C // T.D, at, T.D)
    v = wide_parameter(v_ptr, 0, at)
    part, _, _ = _chunk_sums(dy_ptr, x_ptr, sums_ptr, plane, at, weight, v, rstd, T)
    unit, units = unit_indices(at, T)
    tl.store(parts_ptr + at.row * units + unit, part, unit < units)


@kernel
def _sample_gradients_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (2, N, groups) mean and rstd
    sums_ptr,  # (2 or 3, N, chunks, C), for dweight, dbias, dv
    parts_ptr,  # (N, chunks, units) sums of weight dy x sigmoid(v x)
    dweight_ptr,  # out: as weight
    dbias_ptr,  # out: as weight
    dv_ptr,  # out where v is: (C,)
    plane: tl.int64,  # of sums: elements from one of them to the next
    rows,  # of sums that are added up to one output
    outputs,
    extra,  # programs that do so; the others make dx
    own: tl.int64,  # N groups
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    CENTRED: tl.constexpr,
    G: tl.constexpr,  # of add_rows
    R: tl.constexpr,
    T: tl.constexpr,
):
    """Of chunks the second step."""
    pid = tl.program_id(0)
    if pid < extra:
        out_ptrs = (dweight_ptr, dbias_ptr, dv_ptr, dv_ptr)
        add_rows(pid, sums_ptr, out_ptrs, plane, rows, outputs, C, G, R)
    else:
        at = place(C, HW, chunk, chunks, True, T, extra)
        rstd_ptr = mean_ptr + own
        weight = parameter(weight_ptr, weight_stride, at)
        mean = wide_parameter(mean_ptr, C // T.D, at, T.D)
        rstd = parameter(rstd_ptr, C // T.D, at, T.D)
        v = wide_parameter(v_ptr, 0, at)
        total = add_chunks(parts_ptr, at.n, chunks, at, T)
        _store_dx(
            dy_ptr, x_ptr, dx_ptr, None, None, at, weight, v, mean, rstd, total, CENTRED, True, T
        )


@entry("dxgcs")
def sample_backward(sizes, centred):
    """Gradients ``dx, dweight, dbias, dv`` of the S series; ``dv`` None where v is.

    Of dy, x, weight, v, and mean and rstd ``(2, N, groups)``.
    """
    constants = {"CENTRED": centred}
    backward = backward_of_groups(
        sizes,
        (_sample_backward_kernel, constants),
        (_sample_sums_kernel, {}),
        (_sample_gradients_kernel, constants),
        has_v=not sizes.absent,
        planes=1,
    )
    return lambda dy, x, weight, v, mean_rstd: backward(dy, x, weight, v, (weight, v, mean_rstd))
