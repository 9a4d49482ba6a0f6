"""The gradients of group norms with an activation."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.buffers import add_rows
from evonorm_plugins.kernels.triton.entry import entry
from evonorm_plugins.kernels.triton.group import from_mean
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
def _activation_gradients(z, dy, v, ACT: tl.constexpr, FAST: tl.constexpr):
    """Of z and v; of the latter dy where there is none."""
    dv = dy
    if ACT == "none":
        dz = dy
    elif ACT == "relu":
        dz = tl.where(z <= 0, 0, dy)
    elif ACT == "tlu":
        # As in torch.maximum, either side gets half of a tie. No comparison holds for NaN, which
        # so gets to both.
        e = tl.where(z == v, 0.5 * dy, dy)
        dz = tl.where(z < v, 0, e)
        dv = tl.where(z > v, 0, e)
    else:
        s = sigmoid(z, v, FAST)
        slope = z * s * (1 - s)
        dv = dy * z * slope
        if v is not None:
            slope *= v
        dz = dy * (s + slope)
    return dz, dv


@triton.jit
def _parameters(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, stride, at, T: tl.constexpr):
    """gamma, beta, mean and rstd of the channels, [1, K, 1]."""
    weight = wide_parameter(weight_ptr, stride, at)
    bias = wide_parameter(bias_ptr, stride, at)
    mean = wide_parameter(mean_ptr, at.C // T.D, at, T.D)
    return weight, bias, mean, wide_parameter(rstd_ptr, at.C // T.D, at, T.D)


@triton.jit
def _terms(
    dy_ptr,
    x_ptr,
    weight,
    bias,
    v,
    mean,
    rstd,
    tile,
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
    T: tl.constexpr,
):
    """dy, x and what a tile adds to three sums: dz (x - mean), dz, dv."""
    dy, x = load(dy_ptr, tile, 0, False), load(x_ptr, tile, 0, False)
    centred = from_mean(x, mean, STATISTICS)
    dz, dv = _activation_gradients(centred * (weight * rstd) + bias, dy, v, ACT, T.FAST)
    # Infinite parameters make NaN of what lies beyond x.
    dz = tl.where(tile[2], dz, 0)
    return dy, x, tl.where(tile[2], dz * centred, 0), dz, tl.where(tile[2], dv, 0)


@triton.jit
def _chunk_sums(
    dy_ptr,
    x_ptr,
    sums_ptr,
    plane,
    at,
    given,
    v,
    weight,
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
    T: tl.constexpr,
):
    """Store the sums of a chunk. Of units [U] those of weight dz (x - mean) and of weight dz; first
    tiles of dy and x."""
    w, b, m, r = given
    tile = pixels(at.first, at, T)
    dy, x, scale, shift, slope = _terms(dy_ptr, x_ptr, w, b, v, m, r, tile, STATISTICS, ACT, T)
    if not T.ONE:
        for start in range(at.first + T.P, at.end, T.P):
            tile = pixels(start, at, T)
            terms = _terms(dy_ptr, x_ptr, w, b, v, m, r, tile, STATISTICS, ACT, T)
            scale += terms[2]
            shift += terms[3]
            slope += terms[4]
    scale, shift = sums(scale, T.K, T), sums(shift, T.K, T)
    sums_ptr += at.row * at.C + at.c
    tl.store(sums_ptr, scale * tl.reshape(r, [T.K]), at.inside)
    tl.store(sums_ptr + plane, shift, at.inside)
    if v is not None:
        tl.store(sums_ptr + 2 * plane, sums(slope, T.K, T), at.inside)
    by_x = tl.sum(tl.reshape(scale * weight, [T.U, T.PAD]), 1)
    return by_x, tl.sum(tl.reshape(shift * weight, [T.U, T.PAD]), 1), dy, x


@triton.jit
def _store_dx(
    dy_ptr,
    x_ptr,
    dx_ptr,
    dy_tile,
    x_tile,
    at,
    given,
    v,
    by_x,
    total,
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
    AGAIN: tl.constexpr,
    T: tl.constexpr,
):
    """dx from the sums ``by_x`` and ``total`` [U] of a program's groups; AGAIN: the tiles are to be
    read."""
    weight, bias, mean, rstd = given
    count = (at.HW * T.D).to(tl.float32)
    pull = rstd * rstd * wide(to_channels(by_x, T)) / count
    shift = wide(to_channels(total, T)) / count
    scale = weight * rstd
    if STATISTICS == "norm":
        # One number is its own mean: whatever it is, the gradient is exactly 0.
        rstd = tl.where(count == 1, 0, rstd)
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        if AGAIN:
            dy = load(dy_ptr, tile, 0, True)
            x = load(x_ptr, tile, 0, True)
        else:
            dy, x = dy_tile, x_tile
        z = from_mean(x, mean, STATISTICS) * scale + bias
        dz, _dv = _activation_gradients(z, dy, v, ACT, T.FAST)
        dx = dz * weight
        if STATISTICS == "norm":
            dx -= shift
        # The mean is 0 where it is not that of x.
        store(dx_ptr, (dx - pull * (x - mean)) * rstd, tile)


@kernel
def _group_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    bias_ptr,  # as gamma
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
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
    T: tl.constexpr,
):
    """All of it, where a program has whole groups."""
    at = place(C, HW, chunk, chunks, False, T)
    rstd_ptr = mean_ptr + own
    weight = parameter(weight_ptr, weight_stride, at)
    given = _parameters(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, weight_stride, at, T)
    v = wide_parameter(v_ptr, 0, at)
    by_x, total, dy, x = _chunk_sums(
        dy_ptr, x_ptr, sums_ptr, plane, at, given, v, weight, STATISTICS, ACT, T
    )
    _store_dx(
        dy_ptr, x_ptr, dx_ptr, dy, x, at, given, v, by_x, total, STATISTICS, ACT, not T.ONE, T
    )


@kernel
def _group_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    weight_ptr,  # (C,) or (N, C)
    bias_ptr,  # as gamma
    v_ptr,  # (C,) or None
    mean_ptr,  # (2, N, groups) mean and rstd
    sums_ptr,  # out: (2 or 3, N, chunks, C), for dweight, dbias, dv
    parts_ptr,  # out: (2, N, chunks, units) sums of weight dz (x - mean) and of weight dz
    plane: tl.int64,  # of sums: elements from one of them to the next
    out_plane: tl.int64,  # of parts
    own: tl.int64,  # N groups
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
    T: tl.constexpr,
):
    """Of chunks the first step."""
    at = place(C, HW, chunk, chunks, False, T)
    rstd_ptr = mean_ptr + own
    weight = parameter(weight_ptr, weight_stride, at)
    given = _parameters(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, weight_stride, at, T)
    v = wide_parameter(v_ptr, 0, at)
    by_x, total, _, _ = _chunk_sums(
        dy_ptr, x_ptr, sums_ptr, plane, at, given, v, weight, STATISTICS, ACT, T
    )
    unit, units = unit_indices(at, T)
    parts_ptr += at.row * units + unit
    tl.store(parts_ptr, by_x, unit < units)
    tl.store(parts_ptr + out_plane, total, unit < units)


@kernel
def _group_gradients_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    bias_ptr,  # as gamma
    v_ptr,  # (C,) or None
    mean_ptr,  # (2, N, groups) mean and rstd
    sums_ptr,  # (2 or 3, N, chunks, C), for dweight, dbias, dv
    parts_ptr,  # (2, N, chunks, units) as of _group_sums_kernel
    dweight_ptr,  # out: as weight
    dbias_ptr,  # out: as weight
    dv_ptr,  # out where v is: (C,)
    plane: tl.int64,  # of sums: elements from one of them to the next
    out_plane: tl.int64,  # of parts
    rows,  # of sums that are added up to one output
    outputs,
    extra,  # programs that do so; the others make dx
    own: tl.int64,  # N groups
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    STATISTICS: tl.constexpr,
    ACT: tl.constexpr,
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
        given = _parameters(weight_ptr, bias_ptr, mean_ptr, rstd_ptr, weight_stride, at, T)
        v = wide_parameter(v_ptr, 0, at)
        by_x = add_chunks(parts_ptr, at.n, chunks, at, T)
        total = add_chunks(parts_ptr + out_plane, at.n, chunks, at, T)
        _store_dx(
            dy_ptr, x_ptr, dx_ptr, None, None, at, given, v, by_x, total, STATISTICS, ACT, True, T
        )


@entry("dxgbcs")
def group_backward(sizes, statistics, act):
    """Gradients ``dx, dweight, dbias, dv``; ``dv`` None where v is.

    Of dy, x, weight, bias, v, and mean and rstd ``(2, N, groups)``.
    """
    constants = {"STATISTICS": statistics, "ACT": act}
    backward = backward_of_groups(
        sizes,
        (_group_backward_kernel, constants),
        (_group_sums_kernel, constants),
        (_group_gradients_kernel, constants),
        has_v=not sizes.absent,
        planes=2,
    )
    return lambda dy, x, weight, bias, v, mean_rstd: backward(
        dy, x, weight, v, (weight, bias, v, mean_rstd)
    )
