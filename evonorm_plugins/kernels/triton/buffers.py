"""Memory of what programs hand on, planes ``(J, size)``, and sums over it in a fixed order."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.launch import Launch
from evonorm_plugins.kernels.triton.plan import OPTIONS
from evonorm_plugins.kernels.triton.tiles import kernel


def plane(size):
    """Elements from one plane of so many to the next, which is aligned to 16 bytes."""
    return (size + 3) // 4 * 4


def floats(like, *shape):
    """Memory of float32 on the device of ``like``."""
    # Numbers one by one and a tensor for the device: each saves a third of a microsecond.
    return like.new_empty(*shape, dtype=torch.float32)


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


def summing(samples, chunks, channels, number, per_sample):
    """The Summing of so many planes ``(samples * chunks, channels)``.

    ``per_sample``: the first two planes have a sum for each sample.
    """
    rows, outputs = (chunks, samples) if per_sample else (samples * chunks, 1)
    columns, at_once = rows_at_once(rows)
    programs = -(channels // -columns) * outputs * number
    return Summing(programs, rows, outputs, {"G": columns, "R": at_once})


def summing_of(plan, number):
    """The Summing of a plan's planes."""
    per_sample = plan.affine_stride > 0
    return summing(plan.samples, plan.chunks, plan.channels, number, per_sample)


def adding(plan, size, how):
    """The Launch of a Summing of planes ``size`` elements apart: planes, then the four results."""
    values = (size, how.rows, how.outputs, plan.channels)
    return Launch(_sum_kernel, (how.programs,), values, {**how.at_once, **OPTIONS})


def existing(tensors, other):
    """``tensors`` with ``other`` for None."""
    return [other if t is None else t for t in tensors]


def new_gradients(weight, v):
    """Memory for the gradients of gamma, beta and v; None where v is."""
    dv = None if v is None else torch.empty_like(v)
    return torch.empty_like(weight), torch.empty_like(weight), dv


def fused_gradients(plan, has_v):
    """Gradients of gamma, beta and v of a kernel that writes planes of parts ``size`` apart.

    Returns:
        ``(size, new, add)``: ``sums, gradients = new(weight, v)``, and after the kernel has written
        its planes to ``sums`` ``add(sums, gradients)``. What is one part already is written where
        it is to be.
    """
    number = 3 if has_v else 2
    if plan.rows == 1 and not plan.affine_stride:
        size = plane(plan.channels)

        def new_parts(weight, v):
            found = floats(weight, number, size).unbind(0)
            if size != plan.channels:
                found = [t[: plan.channels] for t in found]
            return found[0], found if has_v else (*found, None)

        return size, new_parts, lambda sums, gradients: None
    size = plane(plan.rows * plan.channels)
    launch = adding(plan, size, summing_of(plan, number))

    def new(weight, v):
        return floats(weight, number * size), new_gradients(weight, v)

    def add(sums, gradients):
        dweight, dbias, dv = gradients
        third = dbias if dv is None else dv
        launch((sums, dweight, dbias, third, third))

    return size, new, add
