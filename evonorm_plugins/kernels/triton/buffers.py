"""Memory of what programs hand on, planes ``(J, size)``, and sums over it in a fixed order."""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.tiles import kernel


def plane(size):
    """Elements from one plane of so many to the next, which is aligned to 16 bytes."""
    return (size + 3) // 4 * 4


def floats(like, *shape):
    """Memory of float32 on the device of ``like``."""
    # Numbers one by one and a tensor for the device: each saves a third of a microsecond.
    return like.new_empty(*shape, dtype=torch.float32)


def planes(like, number, shape):
    """``number`` tensors of ``shape``, ``(C,)`` or ``(N, C)``, in one such memory."""
    size = math.prod(shape)
    if size == plane(size):
        return floats(like, number, *shape).unbind(0)
    strides = (plane(size), *shape[1:], 1)
    return torch.empty_strided(
        (number, *shape), strides, dtype=torch.float32, device=like.device
    ).unbind(0)


def rows_at_once(rows):
    """Channels and rows of a program that goes through so many rows."""
    return (64, 16) if rows <= 16 else (8, 256)


@triton.jit
def add_rows(
    index,  # of the program
    sums_ptr,  # (J, outputs * rows, C)
    out_ptrs,  # out, 4: the sums of two planes (outputs, C) and, over all outputs, of two (C,)
    plane,  # of sums: elements from one of the J to the next
    rows,
    outputs,
    C,
    G: tl.constexpr,  # channels of a program
    R: tl.constexpr,  # rows it loads at once
):
    """Sums over rows. Pointers of planes that there are not may be any of float32."""
    blocks = tl.cdiv(C, G)
    c = index % blocks * G + tl.arange(0, G)
    out = (index // blocks % outputs).to(tl.int64)
    j = index // blocks // outputs
    out_ptr = out_ptrs[0]
    if j == 1:
        out_ptr = out_ptrs[1]
    if j == 2:
        out_ptr = out_ptrs[2]
    if j == 3:
        out_ptr = out_ptrs[3]
    sums_ptr += j.to(tl.int64) * plane + out * rows * C
    if j > 1:
        rows *= outputs
    if (j < 2) | (out == 0):
        total = tl.full([R, G], 0, tl.float32)
        for start in range(0, rows, R):
            r = (start + tl.arange(0, R)[:, None]).to(tl.int64)
            total += tl.load(sums_ptr + r * C + c[None, :], (r < rows) & (c < C)[None, :], 0)
        tl.store(out_ptr + out * C + c, tl.sum(total, 0), c < C)


@kernel
def _sum_kernel(
    sums_ptr,  # these are those of add_rows
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    plane: tl.int64,
    rows,
    outputs,
    C,
    G: tl.constexpr,
    R: tl.constexpr,
):
    out_ptrs = (a_ptr, b_ptr, c_ptr, d_ptr)
    add_rows(tl.program_id(0), sums_ptr, out_ptrs, plane, rows, outputs, C, G, R)


class Summing(NamedTuple):
    """How the planes of all chunks are added up to gradients of parameters."""

    programs: int
    rows: int  # of one output
    outputs: int
    at_once: dict  # constants of the kernels


NO_SUMMING = Summing(0, 0, 0, {"G": 1, "R": 1})


@functools.lru_cache(8192)
def summing(samples, chunks, channels, number, per_sample):
    """The Summing of so many planes ``(samples * chunks, channels)``.

    ``per_sample``: the first two planes have a sum for each sample.
    """
    rows, outputs = (chunks, samples) if per_sample else (samples * chunks, 1)
    columns, at_once = rows_at_once(rows)
    programs = -(channels // -columns) * outputs * number
    return Summing(programs, rows, outputs, {"G": columns, "R": at_once})


def summing_of(plan, number, weight):
    return summing(plan.samples, plan.chunks, plan.channels, number, weight.dim() == 2)


def add_planes(plan, sums, size, how, a, b, c, d):
    """Launch a Summing of planes that are ``size`` elements apart; a to d as of add_rows."""
    values = (size, how.rows, how.outputs, plan.channels)
    plan.run_on((how.programs,), _sum_kernel, (sums, a, b, c, d), *values, **how.at_once)


def existing(tensors, other):
    """``tensors`` with ``other`` for None, which would take longer to launch with."""
    return [other if t is None else t for t in tensors]


def new_gradients(weight, v):
    """Memory for the gradients of gamma, beta and v, all of float32; None where v is."""
    dv = None if v is None else torch.empty_like(v)
    return torch.empty_like(weight), torch.empty_like(weight), dv


def fused_gradients(plan, weight, v, launch):
    """The gradients of gamma, beta and v, of which ``launch(sums, size)`` writes planes of parts.

    What is one part already is written where it is to be.
    """
    number = 2 if v is None else 3
    if plan.rows == 1 and weight.dim() == 1:
        sums = planes(weight, number, weight.shape)
        launch(sums[0], plane(plan.channels))
        return sums if number == 3 else (*sums, None)
    size = plane(plan.rows * plan.channels)
    sums = floats(weight, number * size)
    launch(sums, size)
    dweight, dbias, dv = new_gradients(weight, v)
    third = dbias if dv is None else dv
    add_planes(plan, sums, size, summing_of(plan, number, weight), dweight, dbias, third, third)
    return dweight, dbias, dv
