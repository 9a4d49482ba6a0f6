"""Triton kernels of the six EvoNorm layers, forward and backward.

The formulas are those of :mod:`evonorm_plugins.formulas`; fp32, fp16 or bf16 is read and written,
everything between is float32. A program works on a tile of channels and pixels of one sample, which
it moves over a *chunk* of the pixels. Which of the two axes is contiguous is a constant, so one
kernel serves both memory formats. To the kernels the B series has groups too, of one channel. Of a
group wider than 64 channels every 64 are a *unit*; other units are whole groups.

Moments are sums of ``x - pivot`` and its square, where the pivot is the mean of the first tile: a
centred variance from one pass, however far the mean is from 0. Parts are merged by count, mean and
variance (Chan, Golub, LeVeque 1979). No atomics: sums over programs go through buffers and are
added in a fixed order, so results repeat bit by bit.

How much a program does, see :func:`_plan`:

- *held*: a group fits in the registers of one program. x is read once.
- *fused*: enough groups to fill the GPU. A program reads its group twice, the second time from the
  end backwards, so that most of it comes from the caches.
- *chunks*: few large groups; and the B series, whose batch statistics need all of x first. A
  kernel writes the moments of every chunk; the next one merges those of its group itself unless
  they are many, and goes through x in the opposite order, again for the L2 cache.

Height and width may change with every call: kernels are not specialised on them, but for powers of
two that divide their product and for the size of a tile.
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
# Fused: at least 2 groups for each multiprocessor. What they have read once and not yet twice is
# in the 50 MB of cache if it is 2 of 128 kB or 1 of 256 kB for each; of 512 kB a part is.
_FUSED_PROGRAMS = 264
_CACHED_BYTES = 128 * 1024
_FUSED_BYTES = 512 * 1024
_PARTS = 64  # parts of a group that every program merges itself

_OPTIONS = {"enable_fp_fusion": True}  # fused multiply and add
_kernel = functools.partial(
    triton.jit,
    do_not_specialize=["HW", "chunk", "plane", "out_plane", "rows", "N"],
    do_not_specialize_on_alignment=["chunks"],
)


class _Tile(NamedTuple):
    """Constants of the kernels. A tile is ``[Q, K, L]``, with channel ``k``, pixel ``q L + l``.

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
    ONE: bool  # a chunk is one tile
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
# ``at`` is where a program works: sample, channels [K], which of them exist [K], how many a unit
# has, the end of the pixels, C, H W, the offset in x of the first channel, and channels from that
# one on [K]. ``tile`` is where a tile is: offset in x, offsets from there [Q, K, L], mask.


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
    depth = tl.minimum(T.D - block % T.SUBS * T.PAD, T.PAD)
    if T.SUBS == 1:
        c0 = block * (T.U * T.D)
        # Written so that the compiler sees contiguous channels.
        local = lane if T.D == T.PAD else lane // T.PAD * T.D + lane % T.PAD
    else:
        c0 = block // T.SUBS * T.D + block % T.SUBS * T.PAD
        local = lane
    c = c0 + local
    inside = (lane % T.PAD < depth) & (c < C)
    HW = HW // T.VEC * T.VEC  # says what it is a multiple of
    n = (row // chunks).to(tl.int64)
    base = n * HW * C + c0 if T.LAST else (n * C + c0) * HW
    first = (row % chunks).to(tl.int64) * chunk * T.P
    end = tl.minimum(first + chunk * T.P, HW)
    return row.to(tl.int64), block, first, (n, c, inside, depth, end, C, HW, base, local)


@triton.jit
def _pixels(start, at, T: tl.constexpr):
    """The tile from pixel ``start`` on."""
    inside, _depth, end, C, HW, base, local = at[2:]
    p = tl.arange(0, T.Q)[:, None, None] * T.L + tl.arange(0, T.L)[None, None, :]
    mask = inside[None, :, None] & (p < tl.minimum(end - start, T.P).to(tl.int32))
    local = local[None, :, None]
    if T.WIDE:
        local, p = local.to(tl.int64), p.to(tl.int64)
    else:
        HW = HW.to(tl.int32)
    if T.LAST:
        base += start * C
        offsets = local + p * C
    else:
        base += start
        offsets = local * HW + p
    return base, offsets, mask


@triton.jit
def _load(ptr, tile, OUTSIDE: tl.constexpr, AGAIN: tl.constexpr):
    """A tile in float32, with OUTSIDE beyond x; AGAIN: for the second, and last, time."""
    policy: tl.constexpr = "evict_first" if AGAIN else ""
    return tl.load(ptr + tile[0] + tile[1], tile[2], OUTSIDE, eviction_policy=policy).to(tl.float32)


@triton.jit
def _store(ptr, value, tile):
    tl.store(ptr + tile[0] + tile[1], value.to(ptr.dtype.element_ty), tile[2])


@triton.jit
def _parameter(ptr, stride, at, D: tl.constexpr = 1):
    """Values [K] of the channels from ``(C / D,)`` or, if the stride is not 0, ``(N, C / D)``."""
    return tl.load(ptr + at[0] * stride + at[1] // D, at[2], 0)


@triton.jit
def _wide(a):
    """[K] to [1, K, 1]."""
    return a[None, :, None]


@triton.jit
def _sums(a, ROWS: tl.constexpr, T: tl.constexpr):
    """Sums of a tile over pixels [K], or over pixels and the channels of units [U]."""
    return tl.sum(tl.reshape(tl.permute(a, 1, 0, 2), [ROWS, T.K * T.P // ROWS]), 1)


@triton.jit
def _to_channels(a, T: tl.constexpr):
    """Units [U] to their channels [K]."""
    return tl.reshape(tl.broadcast_to(a[:, None], [T.U, T.PAD]), [T.K])


@triton.jit
def _moments(x_ptr, first, at, CENTRED: tl.constexpr, T: tl.constexpr):
    """Mean, what float32 lost of it, and variance of the units [U]; the first tile of x.

    Not CENTRED: zeros and the mean of squares. A unit with an infinity and no NaN has an infinite
    mean and no variance: its mean of squares is not NaN.
    """
    depth, end = at[3], at[4]
    tile = _pixels(first, at, T)
    x = _load(x_ptr, tile, 0, False)
    z = x
    if CENTRED:
        pivot = _sums(x, T.U, T) / (depth * tl.minimum(end - first, T.P)).to(tl.float32)
        pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
        center = _wide(_to_channels(pivot, T))
        z = tl.where(tile[2], x - center, 0)
    total = z
    squares = z * z
    if not T.ONE:
        for start in range(first + T.P, end, T.P):
            tile = _pixels(start, at, T)
            z = _load(x_ptr, tile, 0, False)
            if CENTRED:
                z = tl.where(tile[2], z - center, 0)
            total += z
            squares += z * z
    count = (depth * (end - first)).to(tl.float32)
    square = _sums(squares, T.U, T) / count
    if CENTRED:
        rest = _sums(total, T.U, T) / count
        mean = pivot + rest
        mean = tl.where((square == float("inf")) & (rest != rest), float("inf"), mean)
        lost = tl.where(tl.abs(mean) < float("inf"), (pivot - mean) + rest, 0)
        var = _maximum(square - rest * rest, 0.0)
    else:
        mean, lost, var = tl.zeros_like(square), tl.zeros_like(square), square
    return mean, lost, var, x


@triton.jit
def _merge(
    parts_ptr, plane, row, rows, group, C, HW, chunk, chunks, R: tl.constexpr, T: tl.constexpr
):
    """Mean, what float32 lost of it, and variance of groups [G], from the parts in so many rows.

    ``row``, the first, is one of a first chunk.
    """
    units = C // T.D * T.SUBS
    parts_ptr += row.to(tl.int64) * units + group[None, :] * T.SUBS
    exists = (group < C // T.D)[None, :]
    pivot = tl.load(parts_ptr, exists, 0)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0)
    total = tl.zeros_like(pivot)
    rest = tl.zeros_like(pivot)
    m2 = tl.zeros_like(pivot)
    for centred in tl.static_range(2):
        for start in range(0, rows * T.SUBS, R):
            part = start + tl.arange(0, R)[:, None]
            mask = exists & (part < rows * T.SUBS)
            sub, r = part % T.SUBS, part // T.SUBS
            pixels = tl.minimum(HW - r % chunks * (chunk * T.P), chunk * T.P)
            count = pixels * tl.minimum(T.D - sub * T.PAD, T.PAD)
            count = tl.where(mask, count.to(tl.float32), 0)
            address = parts_ptr + r.to(tl.int64) * units + sub
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
    """a / b for b > 0; FAST: good to 21 bits, in a third of the instructions."""
    if FAST:
        root = tl.rsqrt(b)
        ratio = a * (root * root)
    else:
        ratio = a / b
    return ratio


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
        side = v * x + std
    elif KIND == "b1":
        side = (x + 1) * std
    else:
        side = std - x
    return side


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
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, False, T)
    mean, lost, var, _ = _moments(x_ptr, first, at, CENTRED, T)
    unit = block * T.U + tl.arange(0, T.U)
    exists = unit < C // T.D * T.SUBS
    parts_ptr += row * (C // T.D * T.SUBS) + unit
    tl.store(parts_ptr, mean, exists)
    tl.store(parts_ptr + plane, lost, exists)
    tl.store(parts_ptr + 2 * plane, var, exists)


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
    out = tl.program_id(1)
    mean, lost, var = _merge(parts_ptr, plane, out * rows, rows, group, C, HW, chunk, chunks, R, T)
    if RSTD:
        var = 1 / tl.sqrt_rn(var + eps)
    exists = group < C // T.D
    out_ptr += out.to(tl.int64) * (C // T.D) + group
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
    parts_ptr,  # (3, N, chunks, units) where SOURCE is "parts"
    mean_ptr,  # (N, groups), out unless SOURCE is "given"
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
    SOURCE: tl.constexpr,  # of the statistics: "x" (one chunk), "parts", or "given"
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, SOURCE != "x", T)
    n, groups = at[0], C // T.D
    if SOURCE == "given":
        mean = _parameter(mean_ptr, groups, at, T.D)
        spread = _parameter(spread_ptr, groups, at, T.D)
    else:
        group = block // T.SUBS * T.U + tl.arange(0, T.U)
        if SOURCE == "x":
            mean, _, spread, x = _moments(x_ptr, first, at, KIND != "s2", T)
        else:
            mean, _, spread = _merge(
                parts_ptr, plane, row // chunks * chunks, chunks, group, C, HW, chunk, chunks, 32, T
            )
        if batch_var_ptr is None:
            spread = 1 / tl.sqrt_rn(spread + eps)
        if (row % chunks == 0) & (block % T.SUBS == 0):
            tl.store(mean_ptr + n * groups + group, mean, group < groups)
            tl.store(spread_ptr + n * groups + group, spread, group < groups)
        mean = _to_channels(mean, T)
        spread = _to_channels(spread, T)
    weight = _parameter(weight_ptr, weight_stride, at)
    bias = _wide(_parameter(bias_ptr, weight_stride, at))
    v = None
    if v_ptr is not None:
        v = _wide(_parameter(v_ptr, 0, at))
    if batch_var_ptr is None:
        weight *= spread
    else:
        std = _wide(_instance_std(mean, spread, eps, KIND))
        batch_std = _wide(tl.sqrt(_parameter(batch_var_ptr, 0, at) + eps))
    weight = _wide(weight)
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    tiles = 1 if T.ONE else tl.cdiv(at[4] - first, T.P)
    for i in range(0, tiles):
        tile = _pixels(first + (tiles - 1 - i) * T.P, at, T)
        if not (T.ONE and SOURCE == "x"):
            x = _load(x_ptr, tile, 0, True)
        if batch_var_ptr is None:
            y = x * _sigmoid(x, v, FAST)
        else:
            y = _divide(x, _maximum(batch_std, _instance_side(x, v, std, KIND)), FAST)
        _store(y_ptr, y * weight + bias, tile)


# ---- backward ----


@triton.jit
def _sample_terms(dy_ptr, x_ptr, v, tile):
    """dy, x and what a tile adds to three sums: dy f, dy and dy df/dv, where f = x sigmoid(v x)."""
    dy = _load(dy_ptr, tile, 0, False)
    x = _load(x_ptr, tile, 1, False)  # not 0, for v may be infinite
    s = _sigmoid(x, v, x_ptr.dtype.element_ty != tl.float32)
    f = x * s
    return dy, x, dy * f, dy, dy * x * (f * (1 - s))


@triton.jit
def _sample_sums(dy_ptr, x_ptr, sums_ptr, plane, row, first, at, weight, v, rstd, T: tl.constexpr):
    """Store the sums of a chunk; sum of weight dy f of units [U], first tiles of dy and x."""
    dy, x, scale, shift, slope = _sample_terms(dy_ptr, x_ptr, v, _pixels(first, at, T))
    if not T.ONE:
        for start in range(first + T.P, at[4], T.P):
            terms = _sample_terms(dy_ptr, x_ptr, v, _pixels(start, at, T))
            scale += terms[2]
            shift += terms[3]
            slope += terms[4]
    scale = _sums(scale, T.K, T)
    c, inside, C = at[1], at[2], at[5]
    sums_ptr += row * C + c
    tl.store(sums_ptr, scale * rstd, inside)
    tl.store(sums_ptr + plane, _sums(shift, T.K, T), inside)
    if v is not None:
        tl.store(sums_ptr + 2 * plane, _sums(slope, T.K, T) * weight * rstd, inside)
    return tl.sum(tl.reshape(scale * weight, [T.U, T.PAD]), 1), dy, x


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
    weight = _parameter(weight_ptr, weight_stride, at)
    rstd = _parameter(rstd_ptr, C // T.D, at, T.D)
    v = None
    if v_ptr is not None:
        v = _wide(_parameter(v_ptr, 0, at))
    part, _, _ = _sample_sums(dy_ptr, x_ptr, sums_ptr, plane, row, first, at, weight, v, rstd, T)
    unit, units = block * T.U + tl.arange(0, T.U), C // T.D * T.SUBS
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
    T: tl.constexpr,
):
    row, block, first, at = _place(C, HW, chunk, chunks, parts_ptr is not None, T)
    weight = _parameter(weight_ptr, weight_stride, at)
    mean = _wide(_parameter(mean_ptr, C // T.D, at, T.D))
    rstd = _parameter(rstd_ptr, C // T.D, at, T.D)
    v = None
    if v_ptr is not None:
        v = _wide(_parameter(v_ptr, 0, at))
    if parts_ptr is None:
        total, dy, x = _sample_sums(
            dy_ptr, x_ptr, sums_ptr, plane, row, first, at, weight, v, rstd, T
        )
    else:
        units = C // T.D * T.SUBS
        unit = (block // T.SUBS * T.U + tl.arange(0, T.U))[None, :] * T.SUBS
        total = tl.full([T.U], 0, tl.float32)
        for start in range(0, chunks * T.SUBS, 32):
            part = start + tl.arange(0, 32)[:, None]
            address = (at[0] * chunks + part // T.SUBS) * units + unit + part % T.SUBS
            mask = (part < chunks * T.SUBS) & (unit < units)
            total += tl.sum(tl.load(parts_ptr + address, mask, 0), 0)
    pull = rstd * rstd * rstd * _to_channels(total, T) / (HW * T.D).to(tl.float32)
    scale, pull = _wide(weight * rstd), _wide(pull)
    tiles = 1 if T.ONE else tl.cdiv(at[4] - first, T.P)
    for i in range(0, tiles):
        tile = _pixels(first + (tiles - 1 - i) * T.P, at, T)
        if not (T.ONE and parts_ptr is None):
            dy = _load(dy_ptr, tile, 0, True)
            x = _load(x_ptr, tile, 0, True)
        s = _sigmoid(x, v, x_ptr.dtype.element_ty != tl.float32)
        slope = x * s * (1 - s)
        if v is not None:
            slope *= v
        z = x
        if CENTRED:
            z -= mean
        _store(dx_ptr, dy * scale * (s + slope) - pull * z, tile)


@triton.jit
def _batch_sides(dy, x, v, std, batch_std, KIND: tl.constexpr, FAST: tl.constexpr):
    """1 / m, and what goes of dy x / m^2 to the instance's and to the batch's side."""
    side = _instance_side(x, v, std, KIND)
    q = _divide(1.0, _maximum(side, batch_std), FAST)
    e = dy * x * q * q
    # As in torch.maximum, either side gets half of a tie. No comparison holds for NaN, which so
    # gets to both.
    e = tl.where(side == batch_std, 0.5 * e, e)
    return q, tl.where(side < batch_std, 0, e), tl.where(side > batch_std, 0, e)


@triton.jit
def _batch_terms(dy_ptr, x_ptr, v, std, batch_std, tile, KIND: tl.constexpr):
    """What a tile adds to the sums of _batch_sums_kernel."""
    dy = _load(dy_ptr, tile, 0, False)
    x = _load(x_ptr, tile, 1, False)  # not 0, for v may be infinite
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    q, to_instance, to_batch = _batch_sides(dy, x, v, std, batch_std, KIND, FAST)
    by_std = to_instance * (x + 1) if KIND == "b1" else to_instance
    return dy * x * q, dy, by_std, to_batch, to_instance * x


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
    mean, var = _parameter(mean_ptr, C, at), _parameter(var_ptr, C, at)
    std = _wide(_instance_std(mean, var, eps, KIND))
    batch_std = tl.sqrt(_parameter(batch_var_ptr, 0, at) + eps)
    v = None
    if v_ptr is not None:
        v = _wide(_parameter(v_ptr, 0, at))
    sums = _batch_terms(dy_ptr, x_ptr, v, std, _wide(batch_std), _pixels(first, at, T), KIND)
    scale, shift, instance, batch, slope = sums
    if not T.ONE:
        for start in range(first + T.P, at[4], T.P):
            tile = _pixels(start, at, T)
            terms = _batch_terms(dy_ptr, x_ptr, v, std, _wide(batch_std), tile, KIND)
            scale += terms[0]
            shift += terms[1]
            instance += terms[2]
            batch += terms[3]
            slope += terms[4]
    weight = -_parameter(weight_ptr, weight_stride, at)
    c, inside = at[1], at[2]
    sums_ptr += row * C + c
    tl.store(sums_ptr, _sums(scale, T.K, T), inside)
    tl.store(sums_ptr + plane, _sums(shift, T.K, T), inside)
    tl.store(sums_ptr + 2 * plane, _sums(instance, T.K, T) * weight, inside)
    tl.store(sums_ptr + 3 * plane, _sums(batch, T.K, T) * weight / (2 * batch_std), inside)
    if v is not None:
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
    weight = _wide(_parameter(weight_ptr, weight_stride, at))
    mean = _parameter(mean_ptr, C, at)
    std = _instance_std(mean, _parameter(var_ptr, C, at), eps, KIND)
    pull = _wide(_parameter(dstd_ptr, C, at) / (std * HW.to(tl.float32)))
    mean, std = _wide(mean), _wide(std)
    batch_std = _wide(tl.sqrt(_parameter(batch_var_ptr, 0, at) + eps))
    v = None
    if v_ptr is not None:
        v = _wide(_parameter(v_ptr, 0, at))
    if batch_mean_ptr is not None:
        count = tl.load(count_ptr) if count_ptr is not None else (HW * N).to(tl.float32)
        batch_mean = _wide(_parameter(batch_mean_ptr, 0, at))
        batch_pull = _wide(_parameter(dbatch_var_ptr, 0, at) * (2 / count))
    FAST: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    tiles = 1 if T.ONE else tl.cdiv(at[4] - first, T.P)
    for i in range(0, tiles):
        tile = _pixels(first + (tiles - 1 - i) * T.P, at, T)
        dy = _load(dy_ptr, tile, 0, True) * weight
        x = _load(x_ptr, tile, 0, True)
        q, to_instance, _to_batch = _batch_sides(dy, x, v, std, batch_std, KIND, FAST)
        if KIND == "b0":
            dx = dy * q - to_instance * v + pull * (x - mean)
        elif KIND == "b1":
            dx = dy * q - to_instance * std + pull * x
        else:
            dx = dy * q + to_instance + pull * x
        if batch_mean_ptr is not None:
            dx += batch_pull * (x - batch_mean)
        _store(dx_ptr, dx, tile)


@_kernel
def _affine_kernel(
    x_ptr,  # (N, C, H, W)
    dy_ptr,  # as x, or None: forward
    out_ptr,  # out: as x, y or dx
    weight_ptr,  # (C,) or (N, C)
    bias_ptr,  # as weight, or None: backward
    sums_ptr,  # out: (2, N, chunks, C), for dweight and dbias, or None: forward
    plane: tl.int64,  # of sums: elements from one of them to the next
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    T: tl.constexpr,
):
    row, _, first, at = _place(C, HW, chunk, chunks, False, T)
    weight = _wide(_parameter(weight_ptr, weight_stride, at))
    if bias_ptr is not None:
        bias = _wide(_parameter(bias_ptr, weight_stride, at))
    scale = tl.full([T.Q, T.K, T.L], 0, tl.float32)
    shift = tl.full([T.Q, T.K, T.L], 0, tl.float32)
    tiles = 1 if T.ONE else tl.cdiv(at[4] - first, T.P)
    for i in range(0, tiles):
        tile = _pixels(first + i * T.P, at, T)
        x = _load(x_ptr, tile, 0, False)
        if bias_ptr is not None:
            _store(out_ptr, x * weight + bias, tile)
        else:
            dy = _load(dy_ptr, tile, 0, False)
            _store(out_ptr, dy * weight, tile)
            scale += dy * x
            shift += dy
    if dy_ptr is not None:
        sums_ptr += row * C + at[1]
        tl.store(sums_ptr, _sums(scale, T.K, T), at[2])
        tl.store(sums_ptr + plane, _sums(shift, T.K, T), at[2])


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
    total = tl.full([R, G], 0, tl.float32)
    for start in range(0, rows, R):
        r = start + tl.arange(0, R)[:, None]
        address = sums_ptr + j * plane + (out * rows + r) * C + c[None, :]
        total += tl.load(address, (r < rows) & (c < C)[None, :], 0)
    tl.store(out_ptr + j * out_plane + out * C + c, tl.sum(total, 0), c < C)


# ---- how much a program does ----


class _Plan(NamedTuple):
    """The regime of a call."""

    fused: bool  # one program for a group, else chunks
    blocks: int  # of channels, of all samples
    units: int  # of a sample
    place: tuple  # C, HW, chunk, chunks: arguments of every kernel on tiles
    tile: _Tile
    launch: dict  # options

    def run(self, kernel, *args, **constants):
        grid = (self.blocks * self.place[-1],)
        kernel[grid](*args, *self.place, **constants, T=self.tile, **self.launch, **_OPTIONS)


def _plan(x, depth, tensors, batch=False):
    """Choose the regime (see the top of this file) from sizes.

    Args:
        x: ``(N, C, H, W)``.
        depth: channels of a group.
        tensors: number of tensors like x that are read.
        batch: for batch statistics: a kernel for the moments, another for their use.
    """
    n, channels, height, width = x.shape
    pixels = height * width
    # The memory is the same where there is one pixel; channels are the longer axis.
    last = pixels == 1 or not x.is_contiguous()
    return _choose(n, channels, pixels, last, x.element_size(), depth, tensors, batch)


@functools.lru_cache(4096)
def _choose(n, channels, pixels, last, size, depth, tensors, batch):
    row = triton.next_power_of_2(pixels)
    most_held = _HELD // tensors
    pad = triton.next_power_of_2(depth)
    if pad * row > most_held:
        pad = min(pad, _UNIT)
    subs = triton.cdiv(depth, pad)
    units = channels // depth * subs

    def channels_of_tile(line):
        k, most = pad, triton.next_power_of_2(units) * pad if subs == 1 else pad
        while k < most and (k * size < line or k * row < _TILE):
            k *= 2
        return k

    # Where channels are last a tile has whole cache lines of them, or halves if that lets it be
    # held or cached.
    options = [channels_of_tile(line) for line in ((128, 64) if last else (0,))]
    bytes_of = {k: k * pixels * size * tensors for k in options}
    holds = [k for k in options if k * row <= most_held and subs == 1]
    caches = [k for k in options if bytes_of[k] <= _CACHED_BYTES and not batch]
    fuses = [k for k in options if bytes_of[k] <= _FUSED_BYTES and not batch]
    k = (holds or caches or fuses[::-1] or options)[0]
    held = bool(holds)

    # Elements of a thread: 32 in registers; 16 in loops, beside which there are sums.
    p = row if held else min(row, max(1, _TILE // (tensors * k)))
    warps = max(1, k * p * tensors // (1024 if held else 512))
    tiles = triton.cdiv(pixels, p)
    blocks = n * triton.cdiv(units, k // pad)
    chunks = max(1, min(triton.cdiv(_PROGRAMS, blocks), tiles // _CHUNK_TILES))
    if not batch:
        chunks = min(chunks, max(1, 2 * _TILE // (k // pad * subs)))
    many = blocks >= _FUSED_PROGRAMS and bytes_of[k] <= _FUSED_BYTES
    fused = not batch and subs == 1 and (held or chunks == 1 or many)
    if fused and not held:
        # Larger programs are fewer at a time, and so is what waits in the cache for them.
        while warps < 32 and p < row and bytes_of[k] * 16 > _CACHED_BYTES * warps:
            p, warps = 2 * p, 2 * warps
    tiles = triton.cdiv(pixels, p)
    chunk = tiles if fused else triton.cdiv(tiles, chunks)
    launch = {"num_warps": min(warps, 32)}
    if fused and not held and warps == 16 and not torch.version.hip:
        launch["maxnreg"] = 64  # makes room for 2 programs
    vec = 1 if last else next(d for d in (16, 4, 1) if pixels % d == 0)
    # 8 threads for a row of a tile, each with what it can load at once.
    length = p if last else min(p, 8 * min(vec, 16 // size))
    return _Plan(
        fused=fused,
        blocks=blocks,
        units=units,
        place=(channels, pixels, chunk, triton.cdiv(tiles, chunk)),
        tile=_Tile(
            D=depth,
            PAD=pad,
            SUBS=subs,
            U=k // pad,
            Q=p // length,
            K=k,
            L=length,
            P=p,
            ONE=chunk == 1,
            LAST=last,
            VEC=vec,
            WIDE=(p * channels if last else k * pixels) >= 2**31,
        ),
        launch=launch,
    )


# ---- the functions that the kernels are for ----
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
        pointers = (dy, x, dx, weight, v, mean, rstd, sums, parts)
        plan.run(_sample_backward_kernel, *pointers, *common, CENTRED=centred)
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
        tiles = triton.cdiv(plan.place[1], plan.tile.P)
        batch = _merged(plan, moments, n, 1, (*plan.place[:2], tiles, 1))
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
    pointers = (dy, x, weight, v, mean, var, batch_var, sums)
    with torch.cuda.device_of(x):
        plan.run(_batch_sums_kernel, *pointers, sums.stride(0), _stride(weight), eps, KIND=kind)
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
    pointers = (dy, x, dx, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count)
    with torch.cuda.device_of(x):
        _plan(x, 1, 2, batch=True).run(
            _batch_backward_kernel, *pointers, _stride(weight), eps, x.shape[0], KIND=kind
        )
    return dx


def batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps):
    """Gradients ``dx, dweight, dbias, dv, dbatch_var`` of the B series."""
    *parameters, dstd, dbatch_var = batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps)
    dx = batch_input_gradient(
        dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, None, kind, eps
    )
    return dx, *parameters, dbatch_var


def affine_forward(x, weight, bias):
    """``x weight + bias``."""
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        pointers = (x, None, y, weight, bias, None)
        _plan(x, 1, 1, batch=True).run(_affine_kernel, *pointers, 0, _stride(weight))
    return y


def affine_backward(dy, x, weight):
    """Gradients ``dx, dweight, dbias`` of :func:`affine_forward`."""
    n, channels = x.shape[:2]
    plan = _plan(x, 1, 2, batch=True)
    chunks = plan.place[-1]
    dx, sums = torch.empty_like(x), _planes(x, 2, n * chunks * channels)
    with torch.cuda.device_of(x):
        pointers = (x, dy, dx, weight, None, sums)
        plan.run(_affine_kernel, *pointers, sums.stride(0), _stride(weight))
        dweight, dbias = _totals(sums, n, channels, chunks, weight)
    return dx, dweight, dbias


def _forward(plan, x, weight, bias, v, batch_var, kind, eps, given=None):
    """y and the statistics of the groups; ``given`` holds them if they are known."""
    n, groups, chunks = x.shape[0], x.shape[1] // plan.tile.D, plan.place[-1]
    y = torch.empty_like(x)
    parts, plane, source = None, 0, "given"
    with torch.cuda.device_of(x):
        if given is not None:
            mean, spread = given
        else:
            if not plan.fused:
                parts = _part_moments(plan, x, kind != "s2")
                plane = parts.stride(0)
            if not plan.fused and chunks * plan.tile.SUBS > _PARTS:
                rstd_eps = eps if batch_var is None else None
                merged = _merged(plan, parts, chunks, n, plan.place, rstd_eps)
                mean, _, spread = _views(merged, (n, groups))
            else:
                mean = x.new_empty((n, groups), dtype=torch.float32)
                spread = torch.empty_like(mean)
                source = "x" if plan.fused else "parts"
        pointers = (x, y, weight, bias, v, parts, mean, spread, batch_var)
        plan.run(_forward_kernel, *pointers, plane, _stride(weight), eps, KIND=kind, SOURCE=source)
    return y, mean, spread


def _part_moments(plan, x, centred=True):
    """Moments of every chunk and unit, planes (3, N * chunks * units)."""
    parts = _planes(x, 3, x.shape[0] * plan.place[-1] * plan.units)
    plan.run(_moments_kernel, x, parts, parts.stride(0), CENTRED=centred)
    return parts


def _instance_moments(plan, x):
    """Moments of every sample's channels, planes (3, N * C)."""
    parts, chunks = _part_moments(plan, x), plan.place[-1]
    return parts if chunks == 1 else _merged(plan, parts, chunks, x.shape[0], plan.place)


def _merged(plan, parts, rows, outputs, place, rstd_eps=None):
    """Merge every ``rows`` rows, planes (3, outputs * groups); with an eps rstd for variance."""
    groups = place[0] // plan.tile.D
    out = _planes(parts, 3, outputs * groups)
    planes = (parts, out, parts.stride(0), out.stride(0))
    at_once = _rows_at_once(rows)
    _merge_kernel[(triton.cdiv(groups, at_once["G"]), outputs)](
        *planes, rows, rstd_eps or 0.0, *place, RSTD=rstd_eps is not None, T=plan.tile, **at_once
    )
    return out


def _summed(sums, rows, outputs, channels):
    """Add every ``rows`` rows of planes (J, outputs * rows * C): planes (J, outputs * C)."""
    out = _planes(sums, len(sums), outputs * channels)
    planes = (sums, out, sums.stride(0), out.stride(0))
    at_once = _rows_at_once(rows)
    grid = (triton.cdiv(channels, at_once["G"]), outputs, len(sums))
    _sum_kernel[grid](*planes, rows, channels, **at_once)
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
    return {"G": 64, "R": 16, **_OPTIONS} if rows <= 16 else {"G": 8, "R": 256, **_OPTIONS}


def _planes(like, number, size):
    """Memory of ``number`` tensors of ``size`` elements, each aligned to 16 bytes."""
    return like.new_empty((number, triton.cdiv(size, 4) * 4), dtype=torch.float32)


def _views(planes, shape):
    return planes[:, : math.prod(shape)].unflatten(1, shape).unbind(0)


def _stride(weight):
    return weight.stride(0) if weight.dim() == 2 else 0
