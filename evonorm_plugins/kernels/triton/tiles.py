"""What the kernels share: where a program works, its tiles, and sums over them."""

import functools
from typing import NamedTuple

import triton
import triton.language as tl

kernel = functools.partial(
    triton.jit,
    do_not_specialize=["HW", "chunk", "plane", "own", "rows", "outputs", "extra", "parts", "N"],
    do_not_specialize_on_alignment=["chunks"],
)


class Tile(NamedTuple):
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
    FAST: bool  # x is of 16 bits: divisions good to 21 will do


class Place(NamedTuple):
    """Where a program works."""

    row: object  # n * chunks + index of the chunk
    block: object  # index of the channels
    first: object  # pixel of the chunk
    end: object  # of the pixels of the chunk
    n: object  # sample
    c: object  # channels [K]
    inside: object  # which of them exist [K]
    depth: object  # channels of a unit
    base: object  # offset in x of the first channel
    local: object  # channels [K], counted from the first
    C: object
    HW: object
    chunk: object  # tiles of a chunk of pixels
    chunks: object  # of a sample


@triton.jit
def place(C, HW, chunk, chunks, BACKWARDS: tl.constexpr, T: tl.constexpr, extra=0):
    """The Place of a program, which ``extra`` others come before.

    Programs of one chunk are neighbours: together they read whole pixels where channels are last.
    """
    pid = tl.program_id(0) - extra
    if BACKWARDS:
        pid = tl.num_programs(0) - extra - 1 - pid
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
    HW = HW // T.VEC * T.VEC  # says what it is a multiple of
    n = (row // chunks).to(tl.int64)
    first = (row % chunks).to(tl.int64) * chunk * T.P
    return Place(
        row=row.to(tl.int64),
        block=block,
        first=first,
        end=tl.minimum(first + chunk * T.P, HW),
        n=n,
        c=c,
        inside=(lane % T.PAD < depth) & (c < C),
        depth=depth,
        base=n * HW * C + c0 if T.LAST else (n * C + c0) * HW,
        local=local,
        C=C,
        HW=HW,
        chunk=chunk,
        chunks=chunks,
    )


@triton.jit
def unit_indices(at, T: tl.constexpr):
    """Units [U] of a tile and their number in a sample."""
    return at.block * T.U + tl.arange(0, T.U), at.C // T.D * T.SUBS


@triton.jit
def group_indices(at, T: tl.constexpr):
    """Groups [U] of the units of a tile and their number in a sample."""
    return at.block // T.SUBS * T.U + tl.arange(0, T.U), at.C // T.D


@triton.jit
def pixels(start, at, T: tl.constexpr):
    """The tile from pixel ``start`` on: offset in x, offsets from there [Q, K, L], mask."""
    HW = at.HW
    p = tl.arange(0, T.Q)[:, None, None] * T.L + tl.arange(0, T.L)[None, None, :]
    mask = wide(at.inside) & (p < tl.minimum(at.end - start, T.P).to(tl.int32))
    local = wide(at.local)
    if T.WIDE:
        local, p = local.to(tl.int64), p.to(tl.int64)
    else:
        HW = HW.to(tl.int32)
    if T.LAST:
        base = at.base + start * at.C
        offsets = local + p * at.C
    else:
        base = at.base + start
        offsets = local * HW + p
    return base, offsets, mask


@triton.jit
def count_tiles(at, T: tl.constexpr):
    """Tiles of a chunk."""
    return 1 if T.ONE else tl.cdiv(at.end - at.first, T.P)


@triton.jit
def pixels_from_end(i, at, T: tl.constexpr):
    """The tile that ``i`` others follow in its chunk."""
    return pixels(at.first + (count_tiles(at, T) - 1 - i) * T.P, at, T)


@triton.jit
def load(ptr, tile, OUTSIDE: tl.constexpr, AGAIN: tl.constexpr):
    """A tile in float32, with OUTSIDE beyond x; AGAIN: for the second, and last, time."""
    policy: tl.constexpr = "evict_first" if AGAIN else ""
    return tl.load(ptr + tile[0] + tile[1], tile[2], OUTSIDE, eviction_policy=policy).to(tl.float32)


@triton.jit
def store(ptr, value, tile):
    tl.store(ptr + tile[0] + tile[1], value.to(ptr.dtype.element_ty), tile[2])


@triton.jit
def parameter(ptr, stride, at, D: tl.constexpr = 1):
    """Values [K] of the channels from ``(C / D,)`` or, if the stride is not 0, ``(N, C / D)``."""
    return tl.load(ptr + at.n * stride + at.c // D, at.inside, 0)


@triton.jit
def wide_parameter(ptr, stride, at, D: tl.constexpr = 1):
    """Such values as [1, K, 1]; None where the pointer is."""
    values = None
    if ptr is not None:
        values = wide(parameter(ptr, stride, at, D))
    return values


@triton.jit
def wide(a):
    """[K] to [1, K, 1]."""
    return a[None, :, None]


@triton.jit
def sums(a, ROWS: tl.constexpr, T: tl.constexpr):
    """Sums of a tile over pixels [K], or over pixels and the channels of units [U]."""
    return tl.sum(tl.reshape(tl.permute(a, 1, 0, 2), [ROWS, T.K * T.P // ROWS]), 1)


@triton.jit
def add_chunks(parts_ptr, n, parts, at, T: tl.constexpr):
    """Sums of a program's groups [U] over the parts of sample ``n``, of ``(N, parts, units)``."""
    group, groups = group_indices(at, T)
    total = tl.full([T.U], 0, tl.float32)
    for start in range(0, parts * T.SUBS, 32):
        part = start + tl.arange(0, 32)[:, None]
        row = n * parts + part // T.SUBS
        address = (row * groups + group[None, :]) * T.SUBS + part % T.SUBS
        mask = (part < parts * T.SUBS) & (group < groups)[None, :]
        total += tl.sum(tl.load(parts_ptr + address, mask, 0), 0)
    return total


@triton.jit
def to_channels(a, T: tl.constexpr):
    """Units [U] to their channels [K]."""
    return tl.reshape(tl.broadcast_to(a[:, None], [T.U, T.PAD]), [T.K])


@triton.jit
def divide(a, b, FAST: tl.constexpr):
    """a / b for b > 0; FAST: good to 21 bits, in a third of the instructions."""
    if FAST:
        root = tl.rsqrt(b)
        ratio = a * (root * root)
    else:
        ratio = a / b
    return ratio


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
