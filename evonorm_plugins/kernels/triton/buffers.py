"""Memory of what programs hand on, planes ``(J, size)``, and sums over it in a fixed order."""

import math

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.plan import OPTIONS
from evonorm_plugins.kernels.triton.tiles import kernel


def planes(like, number, size):
    """Memory of ``number`` tensors of ``size`` elements, each aligned to 16 bytes."""
    return like.new_empty((number, triton.cdiv(size, 4) * 4), dtype=torch.float32)


def views(buffer, shape):
    """The tensors of that shape."""
    return buffer[:, : math.prod(shape)].unflatten(1, shape).unbind(0)


def rows_at_once(rows):
    """Constants of the kernels that go through so many rows: columns and rows of a program."""
    return {"G": 64, "R": 16, **OPTIONS} if rows <= 16 else {"G": 8, "R": 256, **OPTIONS}


@kernel
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


def add_rows(sums, rows, outputs, channels):
    """Add every ``rows`` rows of planes (J, outputs * rows * C): planes (J, outputs * C)."""
    out = planes(sums, len(sums), outputs * channels)
    at_once = rows_at_once(rows)
    grid = (triton.cdiv(channels, at_once["G"]), outputs, len(sums))
    _sum_kernel[grid](sums, out, sums.stride(0), out.stride(0), rows, channels, **at_once)
    return out


def totals(sums, n, channels, chunks, weight):
    """Sums over samples, ``(C,)`` each; the first two ``(N, C)`` where ``weight`` is."""
    if weight.dim() == 1:
        return views(add_rows(sums, n * chunks, 1, channels), (channels,))
    if chunks > 1:
        sums = add_rows(sums, chunks, n, channels)
    rest = views(add_rows(sums[2:], n, 1, channels), (channels,)) if len(sums) > 2 else ()
    return *views(sums[:2], (n, channels)), *rest
