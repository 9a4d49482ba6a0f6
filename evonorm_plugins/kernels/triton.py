"""Triton kernels of the six EvoNorm layers, forward and backward.

The formulas are those of :mod:`evonorm_plugins.functional`; fp32, fp16 or bf16 is read and written,
everything between is float32. A program works on a tile ``[K channels, P pixels]`` of one sample,
which it moves over a *chunk* of the pixels; strides say which of the two axes is contiguous, so one
kernel serves both memory formats. Groups of the S series and channels of the B series (groups of
one channel) are the same thing to the kernels: D channels that share their statistics. Of groups
wider than 64 channels each part of 64 is a *unit*; otherwise a unit is a group.

Moments are sums of ``x - pivot`` and its square, where the pivot is the mean of the first tile:
a centred variance in one pass, however far the mean is from 0. Parts are merged by count, mean and
variance (Chan, Golub, LeVeque 1979). No atomics: sums over programs go through buffers and are
added in a fixed order, so results repeat bit by bit.

How much one program does, see :func:`_plan`:

- *held*: a group fits in the registers of one program. x is read once.
- *fused*: enough groups to fill the GPU. One program reads its group twice, the second time from
  the end backwards, so that most of it comes from the L2 cache.
- *chunks*: few large groups, and the B series, whose batch statistics need all of x first. One
  kernel writes the moments of every chunk, the next merges them itself; it goes through x in the
  opposite order, again for the L2 cache.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

_HELD = 16384  # most elements of a tile kept in registers
_TILE = 4096  # elements of a tile that moves over pixels
_UNIT = 64  # channels of a unit of larger groups
# Chunks: 16 programs for each of the 132 multiprocessors of an H200, so that the last ones to
# finish are a small part of the time, but no program for less than 2 tiles.
_PROGRAMS = 2112
_CHUNK_TILES = 2
# Fused: at least 2 groups for each multiprocessor. Of what all programs have read once and not yet
# twice, 132 times the second number and more is in the 50 MB of cache.
_FUSED_PROGRAMS = 264
_CACHED_BYTES = 256 * 1024
_FUSED_BYTES = 512 * 1024
# Parts that every program merges itself; more have a kernel of their own.
_PARTS = 64


def unavailable(x):
    """None if the kernels can run on ``x``, else the reason in one line."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{str(x.dtype).removeprefix('torch.')} input"
    interpreted = not isinstance(_forward_kernel, triton.JITFunction)
    if x.device.type == "cpu" and interpreted:
        return None
    if x.device.type != "cuda":
        return f"x is on {x.device.type}; Triton needs a CUDA tensor (or TRITON_INTERPRET=1)"
    if torch.version.cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "Triton needs compute capability 8.0"
    return None


# ---- what the kernels share ------------------------------------------------------------------


@triton.jit
def _place(C, D: tl.constexpr, PAD: tl.constexpr, K: tl.constexpr, BACKWARDS: tl.constexpr):
    """Row (sample * chunks + chunk) and channel block of a program, channels [K], which exist [K].

    Programs of one chunk are neighbours: together they read whole pixels where channels are last.
    """
    SUBS: tl.constexpr = (D + PAD - 1) // PAD
    pid = tl.program_id(0)
    if BACKWARDS:
        pid = tl.num_programs(0) - 1 - pid
    blocks = tl.cdiv(C // D * SUBS, K // PAD)
    block = pid % blocks
    lane = tl.arange(0, K)
    if D % PAD == 0:
        c = block * K + lane  # written so that the compiler sees contiguous channels
        inside = c < C
    elif D < PAD:
        c = (block * (K // PAD) + lane // PAD) * D + lane % PAD
        inside = (lane % PAD < D) & (c < C)
    else:
        d = block % SUBS * PAD + lane
        c = block // SUBS * D + d
        inside = d < D
    return pid // blocks, block, c, inside


@triton.jit
def _tile(start, end, n, c, inside, C, HW, P: tl.constexpr, LAST: tl.constexpr):
    """Offsets in x and mask, both [K, P], of pixels start, start + 1, ..., end - 1 at most."""
    p = start + tl.arange(0, P).to(tl.int64)
    mask = inside[:, None] & (p < end)[None, :]
    if LAST:
        return (n * HW * C + c)[:, None] + (p * C)[None, :], mask
    return ((n * C + c) * HW)[:, None] + p[None, :], mask


@triton.jit
def _of_units(a, PAD: tl.constexpr, K: tl.constexpr):
    """Sums of the channels [K] of every unit, [K // PAD]."""
    if PAD == 1:
        return a
    return tl.sum(tl.reshape(a, [K // PAD, PAD]), 1)


@triton.jit
def _to_channels(a, PAD: tl.constexpr, K: tl.constexpr):
    """Units [K // PAD] to their channels [K]."""
    if PAD == 1:
        return a
    return tl.reshape(tl.broadcast_to(a[:, None], [K // PAD, PAD]), [K])


@triton.jit
def _moments(
    x_ptr,
    first,
    end,
    n,
    c,
    inside,
    C,
    HW,
    CENTRED: tl.constexpr,
    HELD: tl.constexpr,
    PAD: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
):
    """Mean, what float32 lost of it, and variance of units [K // PAD]; the first tile [K, P].

    Not CENTRED: zeros and the mean of squares. A unit with an infinity and no NaN has an infinite
    mean (and no variance), for its mean of squares is infinite, not NaN.
    """
    offsets, mask = _tile(first, end, n, c, inside, C, HW, P, LAST)
    x = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
    channels = tl.maximum(_of_units(inside.to(tl.float32), PAD, K), 1)
    if CENTRED:
        pivot = _of_units(tl.sum(x, 1), PAD, K)
        pivot /= channels * tl.minimum(end - first, P).to(tl.float32)
        pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
        shift = _to_channels(pivot, PAD, K)[:, None]
        z = tl.where(mask, x - shift, 0)
    else:
        z = x
    sums = z
    squares = z * z
    if not HELD:
        for start in range(first + P, end, P):
            offsets, mask = _tile(start, end, n, c, inside, C, HW, P, LAST)
            z = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
            if CENTRED:
                z = tl.where(mask, z - shift, 0)
            sums += z
            squares += z * z
    count = channels * (end - first).to(tl.float32)
    square = _of_units(tl.sum(squares, 1), PAD, K) / count
    if not CENTRED:
        return square * 0, square * 0, square, x
    rest = _of_units(tl.sum(sums, 1), PAD, K) / count
    mean = pivot + rest
    mean = tl.where((square == float("inf")) & (rest != rest), float("inf"), mean)
    lost = tl.where(tl.abs(mean) < float("inf"), (pivot - mean) + rest, 0)
    var = tl.maximum(square - rest * rest, 0, propagate_nan=tl.PropagateNan.ALL)
    return mean, lost, var, x


@triton.jit
def _merge(
    parts_ptr,
    plane,
    row,
    rows,
    unit,
    exists,
    C,
    HW,
    chunk,
    chunks,
    D: tl.constexpr,
    PAD: tl.constexpr,
    R: tl.constexpr,
):
    """Merge rows row, ..., row + rows - 1 and the units [U], ... of a group: as _moments, [U]."""
    SUBS: tl.constexpr = (D + PAD - 1) // PAD
    units = C // D * SUBS
    parts_ptr += unit[None, :]
    exists = exists[None, :]
    pivot = tl.load(parts_ptr + row * units, exists, 0)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
    total = tl.zeros_like(pivot)
    rest = tl.zeros_like(pivot)
    m2 = tl.zeros_like(pivot)
    for centred in tl.static_range(2):
        for start in range(0, rows * SUBS, R):
            part = start + tl.arange(0, R)[:, None]
            at = row + part // SUBS
            mask = exists & (part < rows * SUBS)
            pixels = tl.minimum(HW - (at % chunks) * chunk, chunk)
            count = pixels * tl.minimum(D - part % SUBS * PAD, PAD)
            count = tl.where(mask, count.to(tl.float32), 0)
            address = parts_ptr + at * units + part % SUBS
            mean = tl.load(address, mask, 0) - pivot + tl.load(address + plane, mask, 0)
            if centred:
                var = tl.load(address + 2 * plane, mask, 0)
                m2 += tl.sum(count * (var + (mean - rest) * (mean - rest)), 0)[None, :]
            else:
                total += tl.sum(count, 0)[None, :]
                rest += tl.sum(count * mean, 0)[None, :]
        if not centred:
            total = tl.maximum(total, 1)
            rest = rest / total
    mean = pivot + rest
    lost = tl.where(tl.abs(mean) < float("inf"), (pivot - mean) + rest, 0)
    return tl.sum(mean, 0), tl.sum(lost, 0), tl.sum(m2 / total, 0)


@triton.jit
def _sigmoid(x, v):
    """sigmoid(v x); v None stands for 1."""
    if v is not None:
        x = v * x
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _instance_std(mean, var, eps, KIND: tl.constexpr):
    """sqrt(var + eps) of b0; of b1 and b2 the root of mean of squares + eps."""
    if KIND != "b0":
        # Beside an infinite mean the variance is not a number.
        var = tl.where(tl.abs(mean) == float("inf"), float("inf"), var + mean * mean)
    return tl.sqrt_rn(var + eps)


@triton.jit
def _instance_side(x, v, std, KIND: tl.constexpr):
    """The second argument of the maximum: what the sample's own statistic gives."""
    if KIND == "b0":
        return v * x + std
    if KIND == "b1":
        return (x + 1) * std
    return std - x


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


# ---- kernels: forward ------------------------------------------------------------------------


@triton.jit
def _moments_kernel(
    x_ptr,  # x: (N, C, H, W)
    parts_ptr,  # out: (3, N, chunks, units) mean, what float32 lost of it, variance
    plane: tl.int64,  # elements from one of the 3 to the next
    C,
    HW: tl.int64,
    chunk: tl.int64,  # pixels
    chunks,
    CENTRED: tl.constexpr,
    HELD: tl.constexpr,  # a chunk is one tile
    D: tl.constexpr,
    PAD: tl.constexpr,  # channels of a unit, rounded up
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,  # channels_last
    VEC: tl.constexpr,  # divides HW
):
    HW = HW // VEC * VEC
    row, block, c, inside = _place(C, D, PAD, K, False)
    first = (row % chunks) * chunk
    end = tl.minimum(first + chunk, HW)
    n = (row // chunks).to(tl.int64)
    mean, lost, var, _ = _moments(
        x_ptr, first, end, n, c, inside, C, HW, CENTRED, HELD, PAD, K, P, LAST
    )
    units = C // D * ((D + PAD - 1) // PAD)
    unit = block * (K // PAD) + tl.arange(0, K // PAD)
    at = parts_ptr + row.to(tl.int64) * units + unit
    tl.store(at, mean, unit < units)
    tl.store(at + plane, lost, unit < units)
    tl.store(at + 2 * plane, var, unit < units)


@triton.jit
def _merge_kernel(
    parts_ptr,  # (3, rows of all outputs, units)
    out_ptr,  # out: (3, outputs, groups); RSTD: 1 / sqrt(variance + eps) in place of the variance
    plane: tl.int64,  # of parts: elements from one of the 3 to the next
    out_plane: tl.int64,
    rows,
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    RSTD: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    U: tl.constexpr,  # groups of a program
    R: tl.constexpr,  # parts it loads at once
):
    SUBS: tl.constexpr = (D + PAD - 1) // PAD
    group = tl.program_id(0) * U + tl.arange(0, U)
    exists = group < C // D
    out = tl.program_id(1).to(tl.int64)
    mean, lost, var = _merge(
        parts_ptr, plane, out * rows, rows, group * SUBS, exists, C, HW, chunk, chunks, D, PAD, R
    )
    if RSTD:
        var = 1 / tl.sqrt_rn(var + eps)
    at = out_ptr + out * (C // D) + group
    tl.store(at, mean, exists)
    tl.store(at + out_plane, lost, exists)
    tl.store(at + 2 * out_plane, var, exists)


@triton.jit
def _forward_kernel(
    x_ptr,  # x: (N, C, H, W)
    y_ptr,  # out: as x
    weight_ptr,  # gamma: (C,) or (N, C)
    bias_ptr,  # beta: as gamma
    v_ptr,  # (C,) or None
    parts_ptr,  # (3, N, chunks, units) where STATISTICS is "parts"
    mean_ptr,  # (N, groups), out unless STATISTICS is "given"
    spread_ptr,  # likewise: rstd of the S series, the variance of the B series
    batch_var_ptr,  # (C,), None: S series
    plane: tl.int64,  # of parts: elements from one of the 3 to the next
    weight_stride,  # of the samples of gamma and beta: 0 or C
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    KIND: tl.constexpr,  # "s0" for s1 too, "s2", "b0", "b1", "b2"
    STATISTICS: tl.constexpr,  # from "x" (one chunk), from "parts", or "given"
    HELD: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
    VEC: tl.constexpr,
):
    HW = HW // VEC * VEC
    row, block, c, inside = _place(C, D, PAD, K, STATISTICS != "x")
    first = (row % chunks) * chunk
    end = tl.minimum(first + chunk, HW)
    n = (row // chunks).to(tl.int64)
    if STATISTICS == "given":
        mean = tl.load(mean_ptr + n * (C // D) + c // D, inside, 0)
        spread = tl.load(spread_ptr + n * (C // D) + c // D, inside, 0)
    else:
        SUBS: tl.constexpr = (D + PAD - 1) // PAD
        group = block // SUBS * (K // PAD) + tl.arange(0, K // PAD)
        exists = group < C // D
        if STATISTICS == "x":
            mean, _, spread, x = _moments(
                x_ptr, first, end, n, c, inside, C, HW, KIND != "s2", HELD, PAD, K, P, LAST
            )
        else:
            mean, _, spread = _merge(
                parts_ptr, plane, n * chunks, chunks, group * SUBS, exists,
                C, HW, chunk, chunks, D, PAD, 32,
            )  # fmt: skip
        if batch_var_ptr is None:
            spread = 1 / tl.sqrt_rn(spread + eps)
        to_store = exists & (row % chunks == 0) & (block % SUBS == 0)
        tl.store(mean_ptr + n * (C // D) + group, mean, to_store)
        tl.store(spread_ptr + n * (C // D) + group, spread, to_store)
        mean = _to_channels(mean, PAD, K)
        spread = _to_channels(spread, PAD, K)
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)[:, None]
    bias = tl.load(bias_ptr + n * weight_stride + c, inside, 0)[:, None]
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[:, None]
    if batch_var_ptr is not None:
        spread = _instance_std(mean, spread, eps, KIND)
        batch_std = tl.sqrt_rn(tl.load(batch_var_ptr + c, inside, 0) + eps)[:, None]
    spread = spread[:, None]
    tiles = 1 if HELD else tl.cdiv(end - first, P)
    for i in range(0, tiles):
        offsets, mask = _tile(first + (tiles - 1 - i) * P, end, n, c, inside, C, HW, P, LAST)
        if not HELD:
            x = tl.load(x_ptr + offsets, mask, 0, eviction_policy="evict_first").to(tl.float32)
        if batch_var_ptr is not None:
            y = x / _maximum(batch_std, _instance_side(x, v, spread, KIND))
        else:
            y = x * _sigmoid(x, v) * spread
        tl.store(y_ptr + offsets, (y * weight + bias).to(y_ptr.dtype.element_ty), mask)


# ---- kernels: backward -----------------------------------------------------------------------


@triton.jit
def _sample_tile_sums(dy, x, v):
    """What a tile adds to three sums: dy f, dy and dy df/dv, where f = x sigmoid(v x)."""
    s = _sigmoid(x, v)
    f = x * s
    return dy * f, dy, dy * x * (f * (1 - s))


@triton.jit
def _sample_sums(
    dy_ptr,
    x_ptr,
    sums_ptr,
    first,
    end,
    n,
    row,
    c,
    inside,
    weight,
    v,
    rstd,
    plane,
    C,
    HW,
    HELD: tl.constexpr,
    PAD: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
):
    """Store the sums of a chunk; sum of weight dy f over units [K // PAD], first tiles of dy, x."""
    offsets, mask = _tile(first, end, n, c, inside, C, HW, P, LAST)
    dy = tl.load(dy_ptr + offsets, mask, 0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
    scale, shift, slope = _sample_tile_sums(dy, x, v)
    if not HELD:
        for start in range(first + P, end, P):
            offsets, mask = _tile(start, end, n, c, inside, C, HW, P, LAST)
            dy = tl.load(dy_ptr + offsets, mask, 0).to(tl.float32)
            x = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
            a, b, g = _sample_tile_sums(dy, x, v)
            scale += a
            shift += b
            slope += g
    scale = tl.sum(scale, 1)
    at = sums_ptr + row.to(tl.int64) * C + c
    tl.store(at, scale * rstd, inside)
    tl.store(at + plane, tl.sum(shift, 1), inside)
    if v is not None:
        tl.store(at + 2 * plane, tl.sum(slope, 1) * weight * rstd, inside)
    return _of_units(scale * weight, PAD, K), dy, x


@triton.jit
def _sample_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # x: (N, C, H, W)
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    rstd_ptr,  # (N, groups)
    sums_ptr,  # out: (2 or 3, N, chunks, C), for dweight, dbias, dv
    parts_ptr,  # out: (N, chunks, units) sums of weight dy x sigmoid(v x)
    plane: tl.int64,  # of sums: elements from one of them to the next
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    D: tl.constexpr,
    PAD: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
    VEC: tl.constexpr,
):
    HW = HW // VEC * VEC
    row, block, c, inside = _place(C, D, PAD, K, False)
    first = (row % chunks) * chunk
    end = tl.minimum(first + chunk, HW)
    n = (row // chunks).to(tl.int64)
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)
    rstd = tl.load(rstd_ptr + n * (C // D) + c // D, inside, 0)
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[:, None]
    part, _, _ = _sample_sums(
        dy_ptr, x_ptr, sums_ptr, first, end, n, row, c, inside, weight, v, rstd, plane, C, HW,
        False, PAD, K, P, LAST,
    )  # fmt: skip
    units = C // D * ((D + PAD - 1) // PAD)
    unit = block * (K // PAD) + tl.arange(0, K // PAD)
    tl.store(parts_ptr + row.to(tl.int64) * units + unit, part, unit < units)


@triton.jit
def _sample_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # x: (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (N, groups)
    rstd_ptr,  # (N, groups)
    sums_ptr,  # out where parts_ptr is None: (2 or 3, N, C), for dweight, dbias, dv
    parts_ptr,  # (N, chunks, units) sums of weight dy x sigmoid(v x), or None: one chunk
    plane: tl.int64,  # of sums: elements from one of them to the next
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    CENTRED: tl.constexpr,
    HELD: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
    VEC: tl.constexpr,
):
    HW = HW // VEC * VEC
    row, block, c, inside = _place(C, D, PAD, K, parts_ptr is not None)
    first = (row % chunks) * chunk
    end = tl.minimum(first + chunk, HW)
    n = (row // chunks).to(tl.int64)
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)
    mean = tl.load(mean_ptr + n * (C // D) + c // D, inside, 0)
    rstd = tl.load(rstd_ptr + n * (C // D) + c // D, inside, 0)
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[:, None]
    if parts_ptr is None:
        total, dy, x = _sample_sums(
            dy_ptr, x_ptr, sums_ptr, first, end, n, row, c, inside, weight, v, rstd, plane, C, HW,
            HELD, PAD, K, P, LAST,
        )  # fmt: skip
    else:
        SUBS: tl.constexpr = (D + PAD - 1) // PAD
        unit = (block // SUBS * (K // PAD) + tl.arange(0, K // PAD))[None, :] * SUBS
        total = tl.zeros([K // PAD], tl.float32)
        for start in range(0, chunks * SUBS, 32):
            part = start + tl.arange(0, 32)[:, None]
            at = (n * chunks + part // SUBS) * (C // D * SUBS) + unit + part % SUBS
            mask = (part < chunks * SUBS) & (unit < C // D * SUBS)
            total += tl.sum(tl.load(parts_ptr + at, mask, 0), 0)
    scale = (weight * rstd)[:, None]
    pull = rstd * rstd * rstd * _to_channels(total, PAD, K) / (HW * D).to(tl.float32)
    pull, mean = pull[:, None], mean[:, None]
    tiles = 1 if HELD else tl.cdiv(end - first, P)
    for i in range(0, tiles):
        offsets, mask = _tile(first + (tiles - 1 - i) * P, end, n, c, inside, C, HW, P, LAST)
        if not HELD:
            dy = tl.load(dy_ptr + offsets, mask, 0, eviction_policy="evict_first").to(tl.float32)
            x = tl.load(x_ptr + offsets, mask, 0, eviction_policy="evict_first").to(tl.float32)
        s = _sigmoid(x, v)
        slope = x * s * (1 - s)
        if v is not None:
            slope *= v
        z = x
        if CENTRED:
            z -= mean
        dx = dy * scale * (s + slope) - pull * z
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def _batch_sides(dy, x, v, std, batch_std, KIND: tl.constexpr):
    """dy x / m, 1 / m, and what goes of dy x / m^2 to the instance's and to the batch's side."""
    side = _instance_side(x, v, std, KIND)
    q = 1 / _maximum(side, batch_std)
    scaled = dy * x * q
    e = scaled * q
    # As in torch.maximum, either side gets half of a tie. No comparison holds for NaN, which so
    # gets to both.
    e = tl.where(side == batch_std, 0.5 * e, e)
    return scaled, q, tl.where(side < batch_std, 0, e), tl.where(side > batch_std, 0, e)


@triton.jit
def _batch_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # x: (N, C, H, W)
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (N, C)
    var_ptr,  # (N, C)
    batch_var_ptr,  # (C,)
    sums_ptr,  # out: (4 or 5, N, chunks, C), for dweight, dbias, dstd, dbatch_var, dv
    plane: tl.int64,  # of sums: elements from one of them to the next
    weight_stride,
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    KIND: tl.constexpr,
    D: tl.constexpr,  # 1
    PAD: tl.constexpr,  # 1
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
    VEC: tl.constexpr,
):
    HW = HW // VEC * VEC
    row, _, c, inside = _place(C, D, PAD, K, False)
    first = (row % chunks) * chunk
    end = tl.minimum(first + chunk, HW)
    n = (row // chunks).to(tl.int64)
    mean = tl.load(mean_ptr + n * C + c, inside, 0)
    std = _instance_std(mean, tl.load(var_ptr + n * C + c, inside, 0), eps, KIND)[:, None]
    batch_std = tl.sqrt_rn(tl.load(batch_var_ptr + c, inside, 0) + eps)
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[:, None]
    scale = tl.zeros([K, P], tl.float32)
    shift = tl.zeros([K, P], tl.float32)
    instance = tl.zeros([K, P], tl.float32)
    batch = tl.zeros([K, P], tl.float32)
    slope = tl.zeros([K, P], tl.float32)
    for start in range(first, end, P):
        offsets, mask = _tile(start, end, n, c, inside, C, HW, P, LAST)
        dy = tl.load(dy_ptr + offsets, mask, 0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
        scaled, _, to_instance, to_batch = _batch_sides(dy, x, v, std, batch_std[:, None], KIND)
        scale += scaled
        shift += dy
        batch += to_batch
        if KIND == "b1":
            instance += to_instance * (x + 1)
        else:
            instance += to_instance
        if KIND == "b0":
            slope += to_instance * x
    weight = -tl.load(weight_ptr + n * weight_stride + c, inside, 0)
    at = sums_ptr + row.to(tl.int64) * C + c
    tl.store(at, tl.sum(scale, 1), inside)
    tl.store(at + plane, tl.sum(shift, 1), inside)
    tl.store(at + 2 * plane, tl.sum(instance, 1) * weight, inside)
    tl.store(at + 3 * plane, tl.sum(batch, 1) * weight / (2 * batch_std), inside)
    if KIND == "b0":
        tl.store(at + 4 * plane, tl.sum(slope, 1) * weight, inside)


@triton.jit
def _batch_input_gradient_kernel(
    dy_ptr,  # as x
    x_ptr,  # x: (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (N, C)
    var_ptr,  # (N, C)
    batch_mean_ptr,  # (C,), or None: batch_var is not of x
    batch_var_ptr,  # (C,)
    dstd_ptr,  # (N, C)
    dbatch_var_ptr,  # (C,)
    count_ptr,  # () elements of the batch, or None: those of x
    weight_stride,
    eps,
    N,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    KIND: tl.constexpr,
    D: tl.constexpr,  # 1
    PAD: tl.constexpr,  # 1
    K: tl.constexpr,
    P: tl.constexpr,
    LAST: tl.constexpr,
    VEC: tl.constexpr,
):
    HW = HW // VEC * VEC
    row, _, c, inside = _place(C, D, PAD, K, True)
    first = (row % chunks) * chunk
    end = tl.minimum(first + chunk, HW)
    n = (row // chunks).to(tl.int64)
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)[:, None]
    mean = tl.load(mean_ptr + n * C + c, inside, 0)
    std = _instance_std(mean, tl.load(var_ptr + n * C + c, inside, 0), eps, KIND)
    pull = tl.load(dstd_ptr + n * C + c, inside, 0) / (std * HW.to(tl.float32))
    mean, std, pull = mean[:, None], std[:, None], pull[:, None]
    batch_std = tl.sqrt_rn(tl.load(batch_var_ptr + c, inside, 0) + eps)[:, None]
    if batch_mean_ptr is not None:
        if count_ptr is not None:
            count = tl.load(count_ptr)
        else:
            count = (HW * N).to(tl.float32)
        batch_mean = tl.load(batch_mean_ptr + c, inside, 0)[:, None]
        batch_pull = (2 * tl.load(dbatch_var_ptr + c, inside, 0) / count)[:, None]
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[:, None]
    for start in range(first, end, P):
        offsets, mask = _tile(start, end, n, c, inside, C, HW, P, LAST)
        dy = tl.load(dy_ptr + offsets, mask, 0, eviction_policy="evict_first").to(tl.float32)
        x = tl.load(x_ptr + offsets, mask, 0, eviction_policy="evict_first").to(tl.float32)
        dy *= weight
        _, q, to_instance, _ = _batch_sides(dy, x, v, std, batch_std, KIND)
        if KIND == "b0":
            dx = dy * q - to_instance * v + pull * (x - mean)
        elif KIND == "b1":
            dx = dy * q - to_instance * std + pull * x
        else:
            dx = dy * q + to_instance + pull * x
        if batch_mean_ptr is not None:
            dx += batch_pull * (x - batch_mean)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def _sum_kernel(
    sums_ptr,  # (J, rows of all outputs, C)
    out_ptr,  # out: (J, outputs, C) sums of so many rows that follow each other
    plane: tl.int64,  # of sums: elements from one of the J to the next
    out_plane: tl.int64,
    rows,
    C,
    U: tl.constexpr,  # channels of a program
    R: tl.constexpr,  # rows it loads at once
):
    c = tl.program_id(0) * U + tl.arange(0, U)
    out = tl.program_id(1).to(tl.int64)
    j = tl.program_id(2).to(tl.int64)
    total = tl.zeros([R, U], tl.float32)
    for start in range(0, rows, R):
        r = start + tl.arange(0, R)[:, None]
        at = sums_ptr + j * plane + (out * rows + r) * C + c[None, :]
        total += tl.load(at, (r < rows) & (c < C)[None, :], 0)
    tl.store(out_ptr + j * out_plane + out * C + c, tl.sum(total, 0), c < C)


# ---- how much a program does -----------------------------------------------------------------


class _Plan(NamedTuple):
    """The regime of a call."""

    fused: bool  # one program for a group, else chunks
    held: bool  # which keeps the group in registers
    blocks: int  # of channels
    units: int
    place: tuple  # C, HW, chunk, chunks: arguments of every kernel on tiles
    shape: dict  # its constants
    launch: dict  # and its options

    def run(self, kernel, *args, **constants):
        chunks = self.place[-1]
        kernel[(self.blocks * chunks,)](
            *args, *self.place, **constants, **self.shape, **self.launch
        )


def _plan(x, depth, tensors, batch=False):
    """Choose the regime (see the top of this file) from sizes.

    Args:
        x: ``(N, C, H, W)``.
        depth: channels of a group.
        tensors: number of tensors like x that are read.
        batch: for the B series: chunks always.
    """
    n, channels, height, width = x.shape
    pixels, size = height * width, x.element_size()
    row = triton.next_power_of_2(pixels)
    most_held = _HELD // tensors
    pad = triton.next_power_of_2(depth)
    if pad * row > most_held:
        pad = min(pad, _UNIT)
    subs = triton.cdiv(depth, pad)
    units = channels // depth * subs
    # The memory is the same where there is one pixel; channels are the longer axis.
    last = pixels == 1 or not x.is_contiguous()

    def channels_of_tile(line):
        k, most = pad, triton.next_power_of_2(units) * pad if subs == 1 else pad
        while k < most and (k * size < line or k * row < _TILE):
            k *= 2
        return k

    # Where channels are last a tile has whole cache lines of them, or halves if that lets it be
    # held or cached.
    options = [channels_of_tile(line) for line in ((128, 64) if last else (0,))]
    holds = [k for k in options if k * row <= most_held and subs == 1 and not batch]
    caches = [k for k in options if k * pixels * size * tensors <= _CACHED_BYTES]
    k = (holds or caches or options)[0]
    held = bool(holds)

    p = row if held else min(row, max(1, _TILE // k))
    tiles = triton.cdiv(pixels, p)
    blocks = n * triton.cdiv(units, k // pad)
    chunks = max(1, min(triton.cdiv(_PROGRAMS, blocks), tiles // _CHUNK_TILES))
    if not batch:
        chunks = min(chunks, max(1, 2 * _TILE // (k // pad * subs)))
    group_bytes = k * pixels * size * tensors
    many = blocks >= _FUSED_PROGRAMS and group_bytes <= _FUSED_BYTES
    fused = not batch and subs == 1 and (held or chunks == 1 or many)
    chunk = pixels if fused else triton.cdiv(tiles, chunks) * p

    # 32 elements a thread in registers; 16 in loops, beside which there are sums.
    warps = k * p * tensors // (1024 if held else 512)
    if fused and not held:
        # Larger programs are fewer at a time, and so is what waits in the cache for them.
        while warps < 32 and p < row and group_bytes * 32 > _CACHED_BYTES * warps:
            p, warps = 2 * p, 2 * warps
    vec = 1 if last else next(d for d in (16, 4, 1) if pixels % d == 0)
    return _Plan(
        fused=fused,
        held=held,
        blocks=blocks,
        units=units,
        place=(channels, pixels, chunk, triton.cdiv(pixels, chunk)),
        shape={"D": depth, "PAD": pad, "K": k, "P": p, "LAST": last, "VEC": vec},
        launch={"num_warps": min(max(warps, 1), 32), "enable_fp_fusion": True},
    )


# ---- the functions that the kernels are for ----------------------------------------------------
#
# x is (N, C, H, W), not empty, and dense in contiguous or channels_last format; dy has its dtype
# and strides. Parameters and statistics are float32 and contiguous: weight, bias (C,) or (N, C),
# v, batch_var (C,). Results that are not like x are float32 too.


def sample_forward(x, weight, bias, v, groups, eps, centred):
    """EvoNorm-S0, S1 (v None) and S2 (v None, not ``centred``): y, mean and rstd ``(N, groups)``.

    ``y = x sigmoid(v x) rstd weight + bias`` with ``rstd = 1 / sqrt(variance + eps)`` of the
    groups; not ``centred``: the mean of squares in place of the variance, and 0 for the mean.
    """
    plan = _plan(x, x.shape[1] // groups, 1)
    return _forward(plan, x, weight, bias, v, None, "s0" if centred else "s2", eps)


def sample_backward(dy, x, weight, v, mean, rstd, centred):
    """Gradients ``dx, dweight, dbias, dv`` of the S series; ``dv`` None where v is."""
    n, channels = x.shape[:2]
    plan = _plan(x, channels // mean.shape[1], 2)
    chunks = plan.place[-1]
    dx = torch.empty_like(x)
    sums = _planes(x, 2 if v is None else 3, n * chunks * channels)
    common = (sums.stride(0), _stride(weight))
    parts = None
    with torch.cuda.device_of(x):
        if not plan.fused:
            parts = x.new_empty(n * chunks * plan.units, dtype=torch.float32)
            plan.run(_sample_sums_kernel, dy, x, weight, v, rstd, sums, parts, *common)
        plan.run(
            _sample_backward_kernel, dy, x, dx, weight, v, mean, rstd, sums, parts, *common,
            CENTRED=centred, HELD=plan.held,
        )  # fmt: skip
        dweight, dbias, *dv = _totals(sums, n, channels, chunks, weight)
    return dx, dweight, dbias, dv[0] if dv else None


def batch_moments(x):
    """Mean and biased variance of every sample's channels, ``(N, C)`` each."""
    with torch.cuda.device_of(x):
        moments = _instance_moments(_plan(x, 1, 1, batch=True), x)
    mean, _, var = _views(moments, x.shape[:2])
    return mean, var


def batch_apply(x, weight, bias, v, mean, var, batch_var, kind, eps):
    """EvoNorm-B0, B1, B2 (``kind`` "b0", "b1", "b2") of given statistics: y.

    ``y = x / max(sqrt(batch_var + eps), t) weight + bias`` where t of b0, b1 and b2 is
    ``v x + sqrt(var + eps)``, ``(x + 1) r`` and ``r - x``, with ``r = sqrt(var + mean^2 + eps)``.
    """
    plan = _plan(x, 1, 1, batch=True)
    return _forward(plan, x, weight, bias, v, batch_var, kind, eps, (mean, var))[0]


def batch_forward(x, weight, bias, v, batch_var, kind, eps):
    """y, mean and var ``(N, C)``, and the mean and variance ``(C,)`` of the batch.

    The last two are empty where ``batch_var`` is given, which is used; else they are those of x.
    """
    if batch_var is not None:
        plan = _plan(x, 1, 1)
        y, mean, var = _forward(plan, x, weight, bias, v, batch_var, kind, eps)
        return y, mean, var, batch_var.new_empty(0), batch_var.new_empty(0)
    plan = _plan(x, 1, 1, batch=True)
    n, channels, height, width = x.shape
    with torch.cuda.device_of(x):
        moments = _instance_moments(plan, x)
        place = (channels, height * width, height * width, 1)
        batch = _merged(plan, moments, n, 1, place)
    mean, _, var = _views(moments, (n, channels))
    batch_mean, _, batch_var = _views(batch, (channels,))
    y, _, _ = _forward(plan, x, weight, bias, v, batch_var, kind, eps, (mean, var))
    return y, mean, var, batch_mean, batch_var


def batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps):
    """Gradients ``dweight, dbias, dv, dstd, dbatch_var``; ``dv`` None where v is.

    ``dstd`` ``(N, C)`` is the gradient by the root of each sample's own statistic: of b0
    ``sqrt(var + eps)``, of b1 and b2 ``r``.
    """
    n, channels = x.shape[:2]
    plan = _plan(x, 1, 2, batch=True)
    chunks = plan.place[-1]
    sums = _planes(x, 5 if kind == "b0" else 4, n * chunks * channels)
    with torch.cuda.device_of(x):
        plan.run(
            _batch_sums_kernel, dy, x, weight, v, mean, var, batch_var, sums, sums.stride(0),
            _stride(weight), eps, KIND=kind,
        )  # fmt: skip
        if chunks > 1:
            sums = _summed(sums, chunks, n, channels)
        dweight, dbias, _, dbatch_var, *dv = _totals(sums, n, channels, 1, weight)
    dstd = _views(sums, (n, channels))[2]
    return dweight, dbias, dv[0] if dv else None, dstd, dbatch_var


def batch_input_gradient(
    dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
):
    """dx, from what :func:`batch_reduce` returned.

    ``batch_mean`` ``(C,)``: mean of the batch whose variance ``batch_var`` is; None: it did not
    come from x. ``count``: float32 scalar tensor, elements of that batch; None: those of x.
    """
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _plan(x, 1, 2, batch=True).run(
            _batch_input_gradient_kernel, dy, x, dx, weight, v, mean, var, batch_mean, batch_var,
            dstd, dbatch_var, count, _stride(weight), eps, x.shape[0], KIND=kind,
        )  # fmt: skip
    return dx


def batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps):
    """Gradients ``dx, dweight, dbias, dv, dbatch_var`` of the B series."""
    *parameters, dstd, dbatch_var = batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps)
    dx = batch_input_gradient(
        dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, None, kind, eps
    )
    return dx, *parameters, dbatch_var


def _forward(plan, x, weight, bias, v, batch_var, kind, eps, given=None):
    """y and the statistics of the groups; ``given`` holds them if they are known."""
    n, channels = x.shape[:2]
    y = torch.empty_like(x)
    parts, plane, source = None, 0, "given"
    with torch.cuda.device_of(x):
        if given is None:
            groups = channels // plan.shape["D"]
            if not plan.fused:
                parts = _part_moments(plan, x, kind != "s2")
                plane = parts.stride(0)
            if parts is not None and plan.place[-1] * plan.units > _PARTS * groups:
                rstd_eps = None if batch_var is not None else eps
                rows = plan.place[-1]
                parts = _merged(plan, parts, rows, n, plan.place, rstd_eps)
                mean, _, spread = _views(parts, (n, groups))
            else:
                mean = x.new_empty((n, groups), dtype=torch.float32)
                spread = torch.empty_like(mean)
                source = "x" if plan.fused else "parts"
        else:
            mean, spread = given
        plan.run(
            _forward_kernel, x, y, weight, bias, v, parts, mean, spread, batch_var, plane,
            _stride(weight), eps, KIND=kind, STATISTICS=source, HELD=plan.held and source == "x",
        )  # fmt: skip
    return y, mean, spread


def _part_moments(plan, x, centred=True):
    """Moments of every chunk and unit, planes (3, N * chunks * units)."""
    parts = _planes(x, 3, x.shape[0] * plan.place[-1] * plan.units)
    held = plan.place[2] <= plan.shape["P"]
    plan.run(_moments_kernel, x, parts, parts.stride(0), CENTRED=centred, HELD=held)
    return parts


def _instance_moments(plan, x):
    """Moments of every sample's channels, planes (3, N * C)."""
    parts, chunks = _part_moments(plan, x), plan.place[-1]
    return parts if chunks == 1 else _merged(plan, parts, chunks, x.shape[0], plan.place)


def _merged(plan, parts, rows, outputs, place, rstd_eps=None):
    """Merge every ``rows`` rows, planes (3, outputs * groups); with an eps rstd for variance."""
    depth, pad = plan.shape["D"], plan.shape["PAD"]
    groups = place[0] // depth
    out = _planes(parts, 3, outputs * groups)
    tile = _rows_at_once(rows)
    _merge_kernel[(triton.cdiv(groups, tile["U"]), outputs)](
        parts, out, parts.stride(0), out.stride(0), rows, rstd_eps or 0.0, *place,
        RSTD=rstd_eps is not None, D=depth, PAD=pad, **tile,
    )  # fmt: skip
    return out


def _summed(sums, rows, outputs, channels):
    """Add every ``rows`` rows of planes (J, rows * outputs * C): planes (J, outputs * C)."""
    out = _planes(sums, len(sums), outputs * channels)
    tile = _rows_at_once(rows)
    _sum_kernel[(triton.cdiv(channels, tile["U"]), outputs, len(sums))](
        sums, out, sums.stride(0), out.stride(0), rows, channels, **tile
    )
    return out


def _totals(sums, n, channels, chunks, weight):
    """Sums over samples, ``(C,)`` each; the first two ``(N, C)`` where ``weight`` is."""
    if weight.dim() == 1:
        return _views(_summed(sums, n * chunks, 1, channels), (channels,))
    if chunks > 1:
        sums = _summed(sums, chunks, n, channels)
    totals = _views(_summed(sums[2:], n, 1, channels), (channels,)) if len(sums) > 2 else ()
    return *_views(sums[:2], (n, channels)), *totals


def _rows_at_once(rows):
    return {"U": 64, "R": 16} if rows <= 16 else {"U": 8, "R": 256}


def _planes(like, number, size):
    """Memory of ``number`` tensors of ``size`` elements, each aligned to 16 bytes."""
    return like.new_empty((number, triton.cdiv(size, 4) * 4), dtype=torch.float32)


def _views(planes, shape):
    return planes[:, : math.prod(shape)].unflatten(1, shape).unbind(0)


def _stride(weight):
    return weight.stride(0) if weight.dim() == 2 else 0
