"""RS + rej, of the B series: max(x, 0) over the batch's root of the mean of squares."""

import torch
import triton.language as tl

from evonorm_plugins.kernels.triton.buffers import (
    add_planes,
    floats,
    new_gradients,
    plane,
    summing_of,
)
from evonorm_plugins.kernels.triton.moments import merge, part_moments
from evonorm_plugins.kernels.triton.plan import make_plan, sample_stride
from evonorm_plugins.kernels.triton.tiles import (
    count_tiles,
    kernel,
    load,
    maximum,
    parameter,
    pixels,
    pixels_from_end,
    place,
    store,
    sums,
    wide,
    wide_parameter,
)


@kernel
def _rectified_forward_kernel(
    x_ptr,  # (N, C, H, W)
    y_ptr,  # out: as x
    weight_ptr,  # gamma: (C,) or (N, C)
    bias_ptr,  # beta: as gamma
    mean_square_ptr,  # (C,)
    weight_stride,  # of the samples of gamma and beta: 0 or C
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,  # tiles of a chunk of pixels
    chunks,
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, True, T)
    rms = tl.sqrt_rn(parameter(mean_square_ptr, 0, at) + eps)
    scale = wide(parameter(weight_ptr, weight_stride, at) / rms)
    bias = wide_parameter(bias_ptr, weight_stride, at)
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        store(y_ptr, maximum(load(x_ptr, tile, 0, True), 0.0) * scale + bias, tile)


@kernel
def _rectified_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    weight_ptr,  # (C,) or (N, C)
    mean_square_ptr,  # (C,)
    sums_ptr,  # out: (3, N, chunks, C), for dweight, dbias, gradient of the mean of squares
    plane: tl.int64,  # of sums: elements from one of them to the next
    weight_stride,
    eps,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, False, T)
    scale = tl.full([T.Q, T.K, T.L], 0, tl.float32)
    shift = tl.full([T.Q, T.K, T.L], 0, tl.float32)
    for i in range(0, count_tiles(at, T)):
        tile = pixels(at.first + i * T.P, at, T)
        dy = load(dy_ptr, tile, 0, False)
        scale += dy * maximum(load(x_ptr, tile, 0, False), 0.0)
        shift += dy
    square = parameter(mean_square_ptr, 0, at) + eps
    weight = parameter(weight_ptr, weight_stride, at)
    by_weight = sums(scale, T.K, T) / tl.sqrt_rn(square)
    sums_ptr += at.row * C + at.c
    tl.store(sums_ptr, by_weight, at.inside)
    tl.store(sums_ptr + plane, sums(shift, T.K, T), at.inside)
    tl.store(sums_ptr + 2 * plane, -by_weight * weight / (2 * square), at.inside)


@kernel
def _rectified_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    mean_square_ptr,  # (C,)
    mean_square_grad_ptr,  # (C,), or None: it is not that of x
    count_ptr,  # () elements of the batch, or None: those of x
    weight_stride,
    eps,
    N,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, True, T)
    rms = tl.sqrt_rn(parameter(mean_square_ptr, 0, at) + eps)
    scale = wide(parameter(weight_ptr, weight_stride, at) / rms)
    if mean_square_grad_ptr is not None:
        count = tl.load(count_ptr) if count_ptr is not None else (HW * N).to(tl.float32)
        pull = wide(parameter(mean_square_grad_ptr, 0, at) * (2 / count))
    for i in range(0, count_tiles(at, T)):
        tile = pixels_from_end(i, at, T)
        x = load(x_ptr, tile, 0, True)
        # Of 0 the gradient is 0, that of NaN goes through, as in torch.
        dx = tl.where(x <= 0, 0, load(dy_ptr, tile, 0, True) * scale)
        if mean_square_grad_ptr is not None:
            dx += pull * x
        store(dx_ptr, dx, tile)


def rectified_apply(x, weight, bias, mean_square, eps):
    """y of a given mean of squares ``(C,)``."""
    y = torch.empty_like(x)
    plan = make_plan(x, 1, 1, chunked=True)
    tensors = (x, y, weight, bias, mean_square)
    plan.run(_rectified_forward_kernel, tensors, sample_stride(weight), eps)
    return y


def rectified_forward(x, weight, bias, mean_square, eps):
    """y, None, None, and 0 and the mean of squares of x ``(C,)``, or empty where it is given."""
    if mean_square is not None:
        y = rectified_apply(x, weight, bias, mean_square, eps)
        return y, None, None, mean_square.new_empty(0), mean_square.new_empty(0)
    plan = make_plan(x, 1, 1, chunked=True)
    mean, mean_square = floats(x, plan.channels), floats(x, plan.channels)
    parts, size = part_moments(plan, x, False)
    merge(plan, parts, size, mean, mean_square)
    return rectified_apply(x, weight, bias, mean_square, eps), None, None, mean, mean_square


def rectified_reduce(dy, x, weight, mean_square, eps):
    """Gradients of weight, bias and the mean of squares."""
    plan = make_plan(x, 1, 2, chunked=True)
    size = plane(plan.rows * plan.channels)
    sums = floats(x, 3 * size)
    tensors = (dy, x, weight, mean_square, sums)
    plan.run(_rectified_sums_kernel, tensors, size, sample_stride(weight), eps)
    dweight, dbias, dsquare = new_gradients(weight, mean_square)
    add_planes(plan, sums, size, summing_of(plan, 3, weight), dweight, dbias, dsquare, dsquare)
    return dweight, dbias, dsquare


def rectified_input_gradient(dy, x, weight, mean_square, mean_square_grad, count, eps):
    """dx; with a ``mean_square_grad`` None without the part of the mean of squares."""
    dx = torch.empty_like(x)
    plan = make_plan(x, 1, 2, chunked=True)
    tensors = (dy, x, dx, weight, mean_square, mean_square_grad, count)
    plan.run(_rectified_backward_kernel, tensors, sample_stride(weight), eps, plan.samples)
    return dx
