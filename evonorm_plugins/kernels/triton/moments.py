"""Mean and variance of groups, and how those of parts are merged.

Moments are sums of ``x - pivot`` and its square, where the pivot is the mean of the first tile: a
centred variance from one pass, however far the mean is from 0. Parts are merged by count, mean and
variance (Chan, Golub, LeVeque 1979).
"""

from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.buffers import floats, plane, rows_at_once
from evonorm_plugins.kernels.triton.entry import entry
from evonorm_plugins.kernels.triton.launch import Launch
from evonorm_plugins.kernels.triton.plan import OPTIONS, make_plan
from evonorm_plugins.kernels.triton.tiles import (
    group_indices,
    kernel,
    load,
    maximum,
    pixels,
    place,
    sums,
    to_channels,
    unit_indices,
    wide,
)


@triton.jit
def moments(x_ptr, at, CENTRED: tl.constexpr, T: tl.constexpr):
    """Mean, what float32 lost of it, and variance of the units [U]; the first tile of x.

    Not CENTRED: zeros and the mean of squares. A unit with an infinity and no NaN has an infinite
    mean and no variance: its mean of squares is not NaN.
    """
    tile = pixels(at.first, at, T)
    x = load(x_ptr, tile, 0, False)
    z = x
    if CENTRED:
        count = at.depth * tl.minimum(at.end - at.first, T.P)
        pivot = _finite(sums(x, T.U, T) / count.to(tl.float32))
        center = wide(to_channels(pivot, T))
        z = tl.where(tile[2], x - center, 0)
    total = z
    squares = z * z
    if not T.ONE:
        for start in range(at.first + T.P, at.end, T.P):
            tile = pixels(start, at, T)
            z = load(x_ptr, tile, 0, False)
            if CENTRED:
                z = tl.where(tile[2], z - center, 0)
            total += z
            squares += z * z
    count = (at.depth * (at.end - at.first)).to(tl.float32)
    square = sums(squares, T.U, T) / count
    if CENTRED:
        rest = sums(total, T.U, T) / count
        mean = pivot + rest
        mean = tl.where((square == float("inf")) & (rest != rest), float("inf"), mean)
        lost = _lost(mean, pivot, rest)
        var = maximum(square - rest * rest, 0.0)
    else:
        mean, lost, var = tl.zeros_like(square), tl.zeros_like(square), square
    return mean, lost, var, x


@triton.jit
def _finite(pivot):
    return tl.where(tl.abs(pivot) < float("inf"), pivot, 0)


@triton.jit
def _lost(mean, pivot, rest):
    """What float32 lost of ``mean = pivot + rest``."""
    return tl.where(tl.abs(mean) < float("inf"), (pivot - mean) + rest, 0)


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
    pivot = _finite(tl.load(parts_ptr, exists, 0))
    total = tl.zeros_like(pivot)
    rest = tl.zeros_like(pivot)
    m2 = tl.zeros_like(pivot)
    for centred in tl.static_range(2):
        for start in range(0, rows * T.SUBS, R):
            part = start + tl.arange(0, R)[:, None]
            mask = exists & (part < rows * T.SUBS)
            sub, r = part % T.SUBS, part // T.SUBS
            count = tl.minimum(HW - r % chunks * (chunk * T.P), chunk * T.P)
            count *= tl.minimum(T.D - sub * T.PAD, T.PAD)
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
    return tl.sum(mean, 0), tl.sum(_lost(mean, pivot, rest), 0), tl.sum(m2 / total, 0)


@triton.jit
def merge_chunks(parts_ptr, plane, at, T: tl.constexpr):
    """Mean and variance of a program's own groups [U], from the parts of all chunks."""
    return _merge_rows(parts_ptr, plane, at.row // at.chunks * at.chunks, at.chunks, at, T)


@triton.jit
def merge_samples(parts_ptr, plane, rows, at, T: tl.constexpr):
    """Likewise of all samples, from the parts of all ``rows``: the batch's mean and variance."""
    return _merge_rows(parts_ptr, plane, at.row * 0, rows, at, T)


@triton.jit
def _merge_rows(parts_ptr, plane, row, rows, at, T: tl.constexpr):
    group, _ = group_indices(at, T)
    mean, _, var = _merge(
        parts_ptr, plane, row, rows, group, at.C, at.HW, at.chunk, at.chunks, 32, T
    )
    return mean, var


@triton.jit
def keep(mean_ptr, spread_ptr, mean, spread, at, T: tl.constexpr):
    """Store statistics of groups [U], (N, groups) each, from one of the programs that have them."""
    if (at.row % at.chunks == 0) & (at.block % T.SUBS == 0):
        keep_row(mean_ptr, spread_ptr, mean, spread, at.n, at, T)


@triton.jit
def keep_row(mean_ptr, spread_ptr, mean, spread, row, at, T: tl.constexpr):
    group, groups = group_indices(at, T)
    tl.store(mean_ptr + row * groups + group, mean, group < groups)
    tl.store(spread_ptr + row * groups + group, spread, group < groups)


@kernel
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
    at = place(C, HW, chunk, chunks, False, T)
    mean, lost, var, _ = moments(x_ptr, at, CENTRED, T)
    unit, units = unit_indices(at, T)
    parts_ptr += at.row * units + unit
    tl.store(parts_ptr, mean, unit < units)
    tl.store(parts_ptr + plane, lost, unit < units)
    tl.store(parts_ptr + 2 * plane, var, unit < units)


@kernel
def _merge_kernel(
    parts_ptr,  # (3, outputs * rows, units)
    mean_ptr,  # out: (outputs, groups)
    spread_ptr,  # out: likewise; RSTD: 1 / sqrt(variance + eps) in place of the variance
    plane: tl.int64,  # of parts: elements from one of the 3 to the next
    own: tl.int64,  # elements of what lies before the spread where its pointer is
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
    mean, _, var = _merge(parts_ptr, plane, out * rows, rows, group, C, HW, chunk, chunks, R, T)
    if RSTD:
        var = 1 / tl.sqrt_rn(var + eps)
    exists = group < C // T.D
    at = out.to(tl.int64) * (C // T.D) + group
    tl.store(mean_ptr + at, mean, exists)
    tl.store(spread_ptr + own + at, var, exists)


class Statistics(NamedTuple):
    """What a forward kernel has the statistics of groups from."""

    source: str  # SOURCE of the kernel: "x" (one chunk), "parts" or "given"
    plane: int  # of parts: elements from one of the 3 to the next
    # Of x and memory for mean and spread, (N, groups) each: the parts (3, N, chunks, units). The
    # kernel fills that memory unless ``source`` is "given". The spread is the variance, or rstd.
    find: Callable


def statistics(plan, centred=True, rstd_eps=None):
    """The Statistics of groups, as the plan has them computed.

    With an eps rstd for variance, both in one memory ``(2, N, groups)``.
    """
    if plan.fused:
        return Statistics("x", 0, lambda x, mean, spread: mean)  # parts are never looked at
    size, find_parts = part_moments(plan, centred)
    if not plan.merged:
        return Statistics("parts", size, lambda x, mean, spread: find_parts(x))
    merge = merging(plan, size, plan.samples, rstd_eps)

    def find(x, mean, spread):
        parts = find_parts(x)
        merge((parts, mean, spread))
        return parts

    return Statistics("given", size, find)


@entry("x")
def batch_moments(sizes, centred=True):
    """Mean and biased variance of every sample's channels, ``(N, C)`` each.

    Not ``centred``: 0 and the mean of squares.
    """
    plan = make_plan(sizes, 1, 1, chunked=True)
    shape = (plan.samples, plan.channels)
    size, find_parts = part_moments(plan, centred)
    merge = merging(plan, size, plan.samples)

    def moments_of(x):
        parts = find_parts(x)
        mean, var = floats(x, *shape), floats(x, *shape)
        merge((parts, mean, var))
        return mean, var

    return moments_of


def part_moments(plan, centred=True):
    """Elements of a plane, and what makes planes (3, N * chunks * units) of x.

    They are the moments of every chunk and unit: mean, what float32 lost of it, and variance.
    """
    size = plane(plan.rows * plan.units)
    launch = plan.launch(_moments_kernel, size, CENTRED=centred)

    def find(x):
        parts = floats(x, 3 * size)
        launch((x, parts))
        return parts

    return size, find


def merging(plan, size, outputs, rstd_eps=None):
    """The Launch that merges parts for so many outputs: parts, then means and spreads.

    With an eps rstd for variance, which lies behind the means in one memory.
    """
    groups = plan.channels // plan.tile.D
    rows = plan.rows // outputs
    columns, at_once = rows_at_once(rows)
    own = 0 if rstd_eps is None else outputs * groups
    values = (size, own, rows, rstd_eps or 0.0, plan.channels, plan.pixels, plan.chunk, plan.chunks)
    constants = {"RSTD": rstd_eps is not None, "G": columns, "R": at_once, "T": plan.tile}
    grid = (triton.cdiv(groups, columns), outputs)
    return Launch(_merge_kernel, grid, values, {**constants, **OPTIONS})
