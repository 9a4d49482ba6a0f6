"""Triton kernels of the six EvoNorm layers, forward and backward.

The formulas are those of :mod:`evonorm_plugins.formulas`; fp32, fp16 or bf16 is read and written,
everything between is float32. A program works on a tile ``[K channels, P pixels]`` of one sample,
which it moves over a *chunk* of the pixels; which of the two axes is contiguous is a constant, so
one kernel serves both memory formats. To the kernels the B series has groups too, of one channel.
Of a group wider than 64 channels every 64 are a *unit*; other units are whole groups.

Moments are sums of ``x - pivot`` and its square, where the pivot is the mean of the first tile: a
centred variance from one pass, however far the mean is from 0. Parts are merged by count, mean and
variance (Chan, Golub, LeVeque 1979). No atomics: sums over programs go through buffers and are
added in a fixed order, so results repeat bit by bit.

How much a program does, see :func:`_plan`:

- *held*: a group fits in the registers of one program. x is read once.
- *fused*: enough groups to fill the GPU. A program reads its group twice, the second time from the
  end backwards, so that most of it comes from the L2 cache.
- *chunks*: few large groups; and the B series, whose batch statistics need all of x first. A
  kernel writes the moments of every chunk; the next one merges those of its group itself unless
  they are many, and goes through x in the opposite order, again for the L2 cache.

Pixels may change with every call: kernels are not specialised on them, but for powers of two that
divide them and the size of a tile.
"""

import functools
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
# twice, 132 times _CACHED_BYTES and more is in the 50 MB of cache.
_FUSED_PROGRAMS = 264
_CACHED_BYTES = 256 * 1024
_FUSED_BYTES = 512 * 1024
_PARTS = 64  # parts of a group that every program merges itself

_OPTIONS = {"enable_fp_fusion": True}  # fused multiply and add
_kernel = functools.partial(
    triton.jit,
    do_not_specialize=["HW", "chunk", "plane", "out_plane", "rows", "N"],
    do_not_specialize_on_alignment=["chunks"],
)


class _Tile(NamedTuple):
    """Constants of the kernels. A tile is ``[Q, K, L]``, with pixel ``q L + l``.

    L is short where pixels are contiguous, so that a thread has many pixels of few channels.
    """

    D: int  # channels of a group
    PAD: int  # channels of a unit, rounded up to a power of two
    SUBS: int  # units of a group
    U: int  # units of a tile
    Q: int
    K: int  # channels of a tile, U * PAD
    L: int
    P: int  # pixels of a tile, Q * L
    LAST: bool  # channels_last
    VEC: int  # divides the pixels of x
    WIDE: bool  # a tile is over more of x than 32 bits can count


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


# ---- what the kernels share ----
#
# ``at`` is where a program works: sample, channels [K], which of them exist [K], the end of its
# pixels, C, H W, the offset in x of its first channel, channels from that one on [K], and how many
# a unit has.


@triton.jit
def _place(C, HW, chunk, chunks, BACKWARDS: tl.constexpr, T: tl.constexpr):
    """Of a program: sample * chunks + chunk, channel block, first pixel, ``at``.

    Programs of one chunk are neighbours: together they read whole pixels where channels are last.
    """
    pid = tl.program_id(0)
    if BACKWARDS:
        pid = tl.num_programs(0) - 1 - pid
    blocks = tl.cdiv(C // T.D * T.SUBS, T.U)
    row, block = pid // blocks, pid % blocks
    lane = tl.arange(0, T.K)
    if T.SUBS == 1:
        c0 = block * (T.U * T.D)
        exists = lane % T.PAD < T.D
        # Written so that the compiler sees contiguous channels.
        local = lane if T.D == T.PAD else lane // T.PAD * T.D + lane % T.PAD
    else:
        c0 = block // T.SUBS * T.D + block % T.SUBS * T.PAD
        exists = block % T.SUBS * T.PAD + lane < T.D
        local = lane
    HW = HW // T.VEC * T.VEC  # says what it is a multiple of
    n = (row // chunks).to(tl.int64)
    base = n * HW * C + c0 if T.LAST else (n * C + c0) * HW
    first = (row % chunks).to(tl.int64) * chunk * T.P
    end = tl.minimum(first + chunk * T.P, HW)
    depth = tl.minimum(T.D - block % T.SUBS * T.PAD, T.PAD)
    at = (n, c0 + local, exists & (c0 + local < C), end, C, HW, base, local, depth)
    return row.to(tl.int64), block, first, at


@triton.jit
def _pixels(start, at, T: tl.constexpr):
    """Offset in x of a tile from pixel start on, those in it [Q, K, L], and mask [Q, K, L]."""
    inside, end, C, HW, base, local = at[2:8]
    p = tl.arange(0, T.Q)[:, None, None] * T.L + tl.arange(0, T.L)[None, None, :]
    mask = inside[None, :, None] & (p < tl.minimum(end - start, T.P).to(tl.int32))
    local = local[None, :, None]
    if T.WIDE:
        local, p = local.to(tl.int64), p.to(tl.int64)
    else:
        HW = HW.to(tl.int32)
    if T.LAST:
        return base + start * C, local + p * C, mask
    return base + start, local * HW + p, mask


@triton.jit
def _sums(a, ROWS: tl.constexpr, T: tl.constexpr):
    """Sums of a tile [Q, K, L]: over pixels [K], or over pixels and the channels of units [U]."""
    return tl.sum(tl.reshape(tl.permute(a, 1, 0, 2), [ROWS, T.K * T.P // ROWS]), 1)


@triton.jit
def _to_channels(a, T: tl.constexpr):
    """Units [U] to their channels [K]."""
    if T.PAD == 1:
        return a
    return tl.reshape(tl.broadcast_to(a[:, None], [T.U, T.PAD]), [T.K])


@triton.jit
def _moments(x_ptr, first, at, CENTRED: tl.constexpr, HELD: tl.constexpr, T: tl.constexpr):
    """Mean, what float32 lost of it, and variance of units [U]; the first tile [K, P].

    Not CENTRED: zeros and the mean of squares. A unit with an infinity and no NaN has an infinite
    mean and no variance: its mean of squares is not NaN.
    """
    shift, offsets, mask = _pixels(first, at, T)
    x = tl.load(x_ptr + shift + offsets, mask, 0).to(tl.float32)
    end, depth = at[3], at[8]
    z = x
    if CENTRED:
        shown = (depth * tl.minimum(end - first, T.P)).to(tl.float32)
        pivot = _sums(x, T.U, T) / shown
        pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
        center = _to_channels(pivot, T)[None, :, None]
        z = tl.where(mask, x - center, 0)
    sums = z
    squares = z * z
    if not HELD:
        for start in range(first + T.P, end, T.P):
            shift, offsets, mask = _pixels(start, at, T)
            z = tl.load(x_ptr + shift + offsets, mask, 0).to(tl.float32)
            if CENTRED:
                z = tl.where(mask, z - center, 0)
            sums += z
            squares += z * z
    count = (depth * (end - first)).to(tl.float32)
    square = _sums(squares, T.U, T) / count
    if not CENTRED:
        return tl.zeros_like(square), tl.zeros_like(square), square, x
    rest = _sums(sums, T.U, T) / count
    mean = pivot + rest
    mean = tl.where((square == float("inf")) & (rest != rest), float("inf"), mean)
    lost = tl.where(tl.abs(mean) < float("inf"), (pivot - mean) + rest, 0)
    return mean, lost, _maximum(square - rest * rest, 0.0), x


@triton.jit
def _merge(
    parts_ptr, plane, row, rows, group, C, HW, chunk, chunks, R: tl.constexpr, T: tl.constexpr
):
    """Merge the parts of groups [G] in rows row, ..., row + rows - 1: as _moments, [G]."""
    units = C // T.D * T.SUBS
    parts_ptr += group[None, :] * T.SUBS
    exists = (group < C // T.D)[None, :]
    pivot = tl.load(parts_ptr + row * units, exists, 0)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
    total = tl.zeros_like(pivot)
    rest = tl.zeros_like(pivot)
    m2 = tl.zeros_like(pivot)
    for centred in tl.static_range(2):
        for start in range(0, rows * T.SUBS, R):
            part = start + tl.arange(0, R)[:, None]
            mask = exists & (part < rows * T.SUBS)
            sub, at = part % T.SUBS, row + part // T.SUBS
            pixels = tl.minimum(HW - (at % chunks) * (chunk * T.P), chunk * T.P)
            count = pixels * tl.minimum(T.D - sub * T.PAD, T.PAD)
            count = tl.where(mask, count.to(tl.float32), 0)
            address = parts_ptr + at * units + sub
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
def _divide(a, b, FAST: tl.constexpr):
    """a / b for b > 0; FAST: good to 21 bits, with a third of the instructions."""
    if FAST:
        root = tl.rsqrt(b)
        return a * (root * root)
    return a / b


@triton.jit
def _sigmoid(x, v, FAST: tl.constexpr):
    """sigmoid(v x); v None stands for 1."""
    rate = -1.4426950408889634  # -log2(e)
    if v is not None:
        rate = v * rate
    return _divide(1.0, 1 + tl.exp2(x * rate), FAST)


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _instance_std(mean, var, eps, KIND: tl.constexpr):
    """sqrt(var + eps) of b0; of b1 and b2 the root of mean of squares + eps."""
    if KIND != "b0":
        # Beside an infinite mean the variance is not a number.
        var = tl.where(tl.abs(mean) == float("inf"), float("inf"), var + mean * mean)
    return tl.sqrt(var + eps)


@triton.jit
def _instance_side(x, v, std, KIND: tl.constexpr):
    """The second argument of the maximum: what the sample's own statistic gives."""
    if KIND == "b0":
        return v * x + std
    if KIND == "b1":
        return (x + 1) * std
    return std - x


# ---- forward ----


@_kernel
def _moments_kernel(
    x_ptr,  # (N, C, H, W)
    parts_ptr,  # out: (3, N, chunks, units) mean, what float32 lost of it, variance
    plane: tl.int64,  # elements from one of the 3 to the next
    C,
    HW: tl.int64,
    chunk: tl.int64,  # tiles of a chunk of pixels
    chunks,
    CENTRED: tl.constexpr,
    HELD: tl.constexpr,  # a chunk is one tile
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, False, T)
    mean, lost, var, _ = _moments(x_ptr, first, at, CENTRED, HELD, T)
    unit = block * T.U + tl.arange(0, T.U)
    exists = unit < C // T.D * T.SUBS
    out = parts_ptr + row * (C // T.D * T.SUBS) + unit
    tl.store(out, mean, exists)
    tl.store(out + plane, lost, exists)
    tl.store(out + 2 * plane, var, exists)


@_kernel
def _merge_kernel(
    parts_ptr,  # (3, outputs * rows, units)
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
    G: tl.constexpr,  # groups of a program
    R: tl.constexpr,  # parts it loads at once
    T: tl.constexpr,
):
    group = tl.program_id(0) * G + tl.arange(0, G)
    out = tl.program_id(1).to(tl.int64)
    mean, lost, var = _merge(parts_ptr, plane, out * rows, rows, group, C, HW, chunk, chunks, R, T)
    if RSTD:
        var = 1 / tl.sqrt_rn(var + eps)
    exists = group < C // T.D
    out_ptr += out * (C // T.D) + group
    tl.store(out_ptr, mean, exists)
    tl.store(out_ptr + out_plane, lost, exists)
    tl.store(out_ptr + 2 * out_plane, var, exists)


@_kernel
def _forward_kernel(
    x_ptr,  # (N, C, H, W)
    y_ptr,  # out: as x
    weight_ptr,  # gamma: (C,) or (N, C)
    bias_ptr,  # beta: as gamma
    v_ptr,  # (C,) or None
    parts_ptr,  # (3, N, chunks, units) where STATISTICS is "parts"
    mean_ptr,  # (N, groups), out unless STATISTICS is "given"
    spread_ptr,  # likewise: rstd of the S series, the variance of the B series
    batch_var_ptr,  # (C,); None: S series
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
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, STATISTICS != "x", T)
    n, c, inside, end = at[:4]
    groups = C // T.D
    if STATISTICS == "given":
        mean = tl.load(mean_ptr + n * groups + c // T.D, inside, 0)
        spread = tl.load(spread_ptr + n * groups + c // T.D, inside, 0)
    else:
        group = block // T.SUBS * T.U + tl.arange(0, T.U)
        if STATISTICS == "x":
            mean, _, spread, x = _moments(x_ptr, first, at, KIND != "s2", HELD, T)
        else:
            mean, _, spread = _merge(
                parts_ptr, plane, n * chunks, chunks, group, C, HW, chunk, chunks, 32, T
            )
        if batch_var_ptr is None:
            spread = 1 / tl.sqrt_rn(spread + eps)
        if (row % chunks == 0) & (block % T.SUBS == 0):
            tl.store(mean_ptr + n * groups + group, mean, group < groups)
            tl.store(spread_ptr + n * groups + group, spread, group < groups)
        mean = _to_channels(mean, T)
        spread = _to_channels(spread, T)
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)[None, :, None]
    bias = tl.load(bias_ptr + n * weight_stride + c, inside, 0)[None, :, None]
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[None, :, None]
    if batch_var_ptr is not None:
        spread = _instance_std(mean, spread, eps, KIND)
        batch_std = tl.sqrt(tl.load(batch_var_ptr + c, inside, 0) + eps)[None, :, None]
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    if batch_var_ptr is None:
        weight *= spread[None, :, None]
    tiles = 1 if HELD else tl.cdiv(end - first, T.P)
    for i in range(0, tiles):
        shift, offsets, mask = _pixels(first + (tiles - 1 - i) * T.P, at, T)
        if not HELD:
            x = tl.load(x_ptr + shift + offsets, mask, 0, eviction_policy="evict_first").to(
                tl.float32
            )
        if batch_var_ptr is None:
            y = x * _sigmoid(x, v, FAST)
        else:
            side = _instance_side(x, v, spread[None, :, None], KIND)
            y = _divide(x, _maximum(batch_std, side), FAST)
        tl.store(y_ptr + shift + offsets, (y * weight + bias).to(y_ptr.dtype.element_ty), mask)


# ---- backward ----


@triton.jit
def _sample_terms(dy, x, v, FAST: tl.constexpr):
    """What a tile adds to three sums: dy f, dy and dy df/dv, where f = x sigmoid(v x)."""
    s = _sigmoid(x, v, FAST)
    f = x * s
    return dy * f, dy, dy * x * (f * (1 - s))


@triton.jit
def _sample_sums(
    dy_ptr,
    x_ptr,
    sums_ptr,
    plane,
    row,
    first,
    at,
    weight,
    v,
    rstd,
    HELD: tl.constexpr,
    T: tl.constexpr,
):
    """Store the sums of a chunk; sum of weight dy f of units [U], first tiles of dy and x."""
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    shift, offsets, mask = _pixels(first, at, T)
    dy = tl.load(dy_ptr + shift + offsets, mask, 0).to(tl.float32)
    x = tl.load(x_ptr + shift + offsets, mask, 0).to(tl.float32)
    scale, total, slope = _sample_terms(dy, x, v, FAST)
    if not HELD:
        for start in range(first + T.P, at[3], T.P):
            shift, offsets, mask = _pixels(start, at, T)
            dy = tl.load(dy_ptr + shift + offsets, mask, 0).to(tl.float32)
            x = tl.load(x_ptr + shift + offsets, mask, 0).to(tl.float32)
            terms = _sample_terms(dy, x, v, FAST)
            scale += terms[0]
            total += terms[1]
            slope += terms[2]
    scale = _sums(scale, T.K, T)
    sums_ptr += row * at[4] + at[1]
    tl.store(sums_ptr, scale * rstd, at[2])
    tl.store(sums_ptr + plane, _sums(total, T.K, T), at[2])
    if v is not None:
        tl.store(sums_ptr + 2 * plane, _sums(slope, T.K, T) * weight * rstd, at[2])
    parts = tl.sum(tl.reshape(scale * weight, [T.U, T.PAD]), 1)
    return parts, dy, x


@_kernel
def _sample_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
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
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, False, T)
    n, c, inside = at[:3]
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)
    rstd = tl.load(rstd_ptr + n * (C // T.D) + c // T.D, inside, 0)
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[None, :, None]
    part, _, _ = _sample_sums(
        dy_ptr, x_ptr, sums_ptr, plane, row, first, at, weight, v, rstd, False, T
    )
    unit = block * T.U + tl.arange(0, T.U)
    units = C // T.D * T.SUBS
    tl.store(parts_ptr + row * units + unit, part, unit < units)


@_kernel
def _sample_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
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
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, parts_ptr is not None, T)
    n, c, inside, end = at[:4]
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)
    mean = tl.load(mean_ptr + n * (C // T.D) + c // T.D, inside, 0)
    rstd = tl.load(rstd_ptr + n * (C // T.D) + c // T.D, inside, 0)
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[None, :, None]
    if parts_ptr is None:
        total, dy, x = _sample_sums(
            dy_ptr, x_ptr, sums_ptr, plane, row, first, at, weight, v, rstd, HELD, T
        )
    else:
        units = C // T.D * T.SUBS
        unit = (block // T.SUBS * T.U + tl.arange(0, T.U))[None, :] * T.SUBS
        total = tl.zeros([T.U], tl.float32)
        for start in range(0, chunks * T.SUBS, 32):
            part = start + tl.arange(0, 32)[:, None]
            where = (n * chunks + part // T.SUBS) * units + unit + part % T.SUBS
            mask = (part < chunks * T.SUBS) & (unit < units)
            total += tl.sum(tl.load(parts_ptr + where, mask, 0), 0)
    scale = (weight * rstd)[None, :, None]
    pull = rstd * rstd * rstd * _to_channels(total, T) / (HW * T.D).to(tl.float32)
    pull, mean = pull[None, :, None], mean[None, :, None]
    tiles = 1 if HELD else tl.cdiv(end - first, T.P)
    for i in range(0, tiles):
        shift, offsets, mask = _pixels(first + (tiles - 1 - i) * T.P, at, T)
        if not HELD:
            dy = tl.load(dy_ptr + shift + offsets, mask, 0, eviction_policy="evict_first").to(
                tl.float32
            )
            x = tl.load(x_ptr + shift + offsets, mask, 0, eviction_policy="evict_first").to(
                tl.float32
            )
        s = _sigmoid(x, v, x_ptr.dtype.element_ty != tl.float32)
        slope = x * s * (1 - s)
        if v is not None:
            slope *= v
        z = x
        if CENTRED:
            z -= mean
        dx = dy * scale * (s + slope) - pull * z
        tl.store(dx_ptr + shift + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def _batch_sides(dy, x, v, std, batch_std, FAST: tl.constexpr, KIND: tl.constexpr):
    """1 / m, and what goes of dy x / m^2 to the instance's and to the batch's side."""
    side = _instance_side(x, v, std, KIND)
    q = _divide(1.0, _maximum(side, batch_std), FAST)
    e = dy * x * q * q
    # As in torch.maximum, either side gets half of a tie. No comparison holds for NaN, which so
    # gets to both.
    e = tl.where(side == batch_std, 0.5 * e, e)
    return q, tl.where(side < batch_std, 0, e), tl.where(side > batch_std, 0, e)


@_kernel
def _batch_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
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
    T: tl.constexpr,
):
    row, _, first, at = _place(C, HW, chunk, chunks, False, T)
    n, c, inside, end = at[:4]
    mean = tl.load(mean_ptr + n * C + c, inside, 0)
    std = _instance_std(mean, tl.load(var_ptr + n * C + c, inside, 0), eps, KIND)[None, :, None]
    batch_std = tl.sqrt(tl.load(batch_var_ptr + c, inside, 0) + eps)
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[None, :, None]
    scale = tl.zeros([T.Q, T.K, T.L], tl.float32)
    total = tl.zeros([T.Q, T.K, T.L], tl.float32)
    instance = tl.zeros([T.Q, T.K, T.L], tl.float32)
    batch = tl.zeros([T.Q, T.K, T.L], tl.float32)
    slope = tl.zeros([T.Q, T.K, T.L], tl.float32)
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    for start in range(first, end, T.P):
        shift, offsets, mask = _pixels(start, at, T)
        dy = tl.load(dy_ptr + shift + offsets, mask, 0).to(tl.float32)
        x = tl.load(x_ptr + shift + offsets, mask, 0).to(tl.float32)
        q, to_instance, to_batch = _batch_sides(dy, x, v, std, batch_std[None, :, None], FAST, KIND)
        scale += dy * x * q
        total += dy
        batch += to_batch
        if KIND == "b1":
            instance += to_instance * (x + 1)
        else:
            instance += to_instance
        if KIND == "b0":
            slope += to_instance * x
    weight = -tl.load(weight_ptr + n * weight_stride + c, inside, 0)
    sums_ptr += row * C + c
    tl.store(sums_ptr, _sums(scale, T.K, T), inside)
    tl.store(sums_ptr + plane, _sums(total, T.K, T), inside)
    tl.store(sums_ptr + 2 * plane, _sums(instance, T.K, T) * weight, inside)
    tl.store(sums_ptr + 3 * plane, _sums(batch, T.K, T) * weight / (2 * batch_std), inside)
    if KIND == "b0":
        tl.store(sums_ptr + 4 * plane, _sums(slope, T.K, T) * weight, inside)


@_kernel
def _batch_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
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
    T: tl.constexpr,
):
    _, _, first, at = _place(C, HW, chunk, chunks, True, T)
    n, c, inside, end = at[:4]
    weight = tl.load(weight_ptr + n * weight_stride + c, inside, 0)[None, :, None]
    mean = tl.load(mean_ptr + n * C + c, inside, 0)
    std = _instance_std(mean, tl.load(var_ptr + n * C + c, inside, 0), eps, KIND)
    pull = tl.load(dstd_ptr + n * C + c, inside, 0) / (std * HW.to(tl.float32))
    mean, std, pull = mean[None, :, None], std[None, :, None], pull[None, :, None]
    batch_std = tl.sqrt(tl.load(batch_var_ptr + c, inside, 0) + eps)[None, :, None]
    if batch_mean_ptr is not None:
        count = tl.load(count_ptr) if count_ptr is not None else (HW * N).to(tl.float32)
        batch_mean = tl.load(batch_mean_ptr + c, inside, 0)[None, :, None]
        batch_pull = (2 * tl.load(dbatch_var_ptr + c, inside, 0) / count)[None, :, None]
    v = None
    if v_ptr is not None:
        v = tl.load(v_ptr + c, inside, 0)[None, :, None]
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    for start in range(first, end, T.P):
        shift, offsets, mask = _pixels(start, at, T)
        dy = tl.load(dy_ptr + shift + offsets, mask, 0, eviction_policy="evict_first").to(
            tl.float32
        )
        x = tl.load(x_ptr + shift + offsets, mask, 0, eviction_policy="evict_first").to(tl.float32)
        dy *= weight
        q, to_instance, _to_batch = _batch_sides(dy, x, v, std, batch_std, FAST, KIND)
        if KIND == "b0":
            dx = dy * q - to_instance * v + pull * (x - mean)
        elif KIND == "b1":
            dx = dy * q - to_instance * std + pull * x
        else:
            dx = dy * q + to_instance + pull * x
        if batch_mean_ptr is not None:
            dx += batch_pull * (x - batch_mean)
        tl.store(dx_ptr + shift + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


@_kernel
def _sum_kernel(
    sums_ptr,  # (J, outputs * rows, C)
    out_ptr,  # out: (J, outputs, C)
    plane: tl.int64,  # of sums: elements from one of the J to the next
    out_plane: tl.int64,
    rows,
    C,
    G: tl.constexpr,  # channels of a program
    R: tl.constexpr,  # rows it loads at once
):
    c = tl.program_id(0) * G + tl.arange(0, G)
    out = tl.program_id(1).to(tl.int64)
    j = tl.program_id(2).to(tl.int64)
    total = tl.zeros([R, G], tl.float32)
    for start in range(0, rows, R):
        r = start + tl.arange(0, R)[:, None]
        row = sums_ptr + j * plane + (out * rows + r) * C + c[None, :]
        total += tl.load(row, (r < rows) & (c < C)[None, :], 0)
    tl.store(out_ptr + j * out_plane + out * C + c, tl.sum(total, 0), c < C)


# ---- how much a program does -----------------------------------------------------------------


class _Plan(NamedTuple):
    """The regime of a call."""

    fused: bool  # one program for a group, else chunks
    held: bool  # which keeps the group in registers
    blocks: int  # of channels
    units: int
    place: tuple  # C, HW, chunk, chunks: arguments of every kernel on tiles
    tile: _Tile
    warps: int

    def run(self, kernel, *args, **constants):
        kernel[(self.blocks * self.place[-1],)](
            *args, *self.place, **constants, T=self.tile, num_warps=self.warps, **_OPTIONS
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
    bytes_of = {k: k * pixels * size * tensors for k in options}
    caches = [k for k in options if bytes_of[k] <= _CACHED_BYTES]
    fuses = [k for k in options if bytes_of[k] <= _FUSED_BYTES]
    k = (holds or caches or fuses or options)[0]
    held = bool(holds)

    each = _TILE if tensors == 1 else _TILE // 2
    p = row if held else min(row, max(1, each // k))
    tiles = triton.cdiv(pixels, p)
    blocks = n * triton.cdiv(units, k // pad)
    chunks = max(1, min(triton.cdiv(_PROGRAMS, blocks), tiles // _CHUNK_TILES))
    if not batch:
        chunks = min(chunks, max(1, 2 * _TILE // (k // pad * subs)))
    many = blocks >= _FUSED_PROGRAMS and bytes_of[k] <= _FUSED_BYTES
    fused = not batch and subs == 1 and (held or chunks == 1 or many)

    # 32 elements a thread in registers; 16 in loops, beside which there are sums.
    warps = k * p * tensors // (1024 if held else 512)
    if fused and not held:
        # Larger programs are fewer at a time, and so is what waits in the cache for them.
        while warps < 32 and p < row and bytes_of[k] * 32 > _CACHED_BYTES * warps:
            p, warps = 2 * p, 2 * warps
    tiles = triton.cdiv(pixels, p)
    chunk = tiles if fused else triton.cdiv(tiles, chunks)
    vec = 1 if last else next(d for d in (16, 4, 1) if pixels % d == 0)
    # 8 threads for a row of a tile, each with what it can load at once.
    l = p if last else min(p, 8 * min(vec, 16 // size))
    wide = (p * channels if last else k * pixels) >= 2**31
    return _Plan(
        fused=fused,
        held=held,
        blocks=blocks,
        units=units,
        place=(channels, pixels, chunk, triton.cdiv(tiles, chunk)),
        tile=_Tile(depth, pad, subs, k // pad, p // l, k, l, p, last, vec, wide),
        warps=min(max(warps, 1), 32),
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
    n, channels = x.shape[:2]
    with torch.cuda.device_of(x):
        moments = _instance_moments(plan, x)
        place = (*plan.place[:2], triton.cdiv(plan.place[1], plan.tile.P), 1)
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
            _batch_backward_kernel, dy, x, dx, weight, v, mean, var, batch_mean, batch_var,
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
            groups = channels // plan.tile.D
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
    held = plan.place[2] == 1
    plan.run(_moments_kernel, x, parts, parts.stride(0), CENTRED=centred, HELD=held)
    return parts


def _instance_moments(plan, x):
    """Moments of every sample's channels, planes (3, N * C)."""
    parts, chunks = _part_moments(plan, x), plan.place[-1]
    return parts if chunks == 1 else _merged(plan, parts, chunks, x.shape[0], plan.place)


def _merged(plan, parts, rows, outputs, place, rstd_eps=None):
    """Merge every ``rows`` rows, planes (3, outputs * groups); with an eps rstd for variance."""
    groups = place[0] // plan.tile.D
    out = _planes(parts, 3, outputs * groups)
    at_once = _rows_at_once(rows)
    _merge_kernel[(triton.cdiv(groups, at_once["G"]), outputs)](
        parts, out, parts.stride(0), out.stride(0), rows, rstd_eps or 0.0, *place,
        RSTD=rstd_eps is not None, **at_once, T=plan.tile, **_OPTIONS,
    )  # fmt: skip
    return out


def _summed(sums, rows, outputs, channels):
    """Add every ``rows`` rows of planes (J, rows * outputs * C): planes (J, outputs * C)."""
    out = _planes(sums, len(sums), outputs * channels)
    at_once = _rows_at_once(rows)
    _sum_kernel[(triton.cdiv(channels, at_once["G"]), outputs, len(sums))](
        sums, out, sums.stride(0), out.stride(0), rows, channels, **at_once, **_OPTIONS
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
    return {"G": 64, "R": 16} if rows <= 16 else {"G": 8, "R": 256}


def _planes(like, number, size):
    """Memory of ``number`` tensors of ``size`` elements, each aligned to 16 bytes."""
    return like.new_empty((number, triton.cdiv(size, 4) * 4), dtype=torch.float32)


def _views(planes, shape):
    return planes[:, : math.prod(shape)].unflatten(1, shape).unbind(0)


def _stride(weight):
    return weight.stride(0) if weight.dim() == 2 else 0
