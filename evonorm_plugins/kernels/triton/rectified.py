"""RS + rej, of the B series: max(x, 0) over the batch's root of the mean of squares."""

import torch
import triton.language as tl

from evonorm_plugins.kernels.triton.buffers import (
    adding,
    floats,
    new_gradients,
    plane,
    summing_of,
)
from evonorm_plugins.kernels.triton.moments import merging, part_moments
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


def rectified_apply(plan, eps):
    """What makes y of a given mean of squares ``(C,)``."""
    launch = plan.launch(_rectified_forward_kernel, plan.affine_stride, eps)

    def apply(x, weight, bias, mean_square):
        y = torch.empty_like(x)
        launch((x, y, weight, bias, mean_square))
        return y

    return apply


def rectified_forward(plan, eps, is_given):
    """y, None, None, and 0 and the mean of squares of x ``(C,)``, or empty where it is given."""
    apply = rectified_apply(plan, eps)
    size, find_parts = part_moments(plan, False)
    merge = merging(plan, size, 1)

    def of_given(x, weight, bias, v, mean_square):
        y = apply(x, weight, bias, mean_square)
        return y, None, None, mean_square.new_empty(0), mean_square.new_empty(0)

    def forward(x, weight, bias, v, _):
        mean, mean_square = floats(x, plan.channels), floats(x, plan.channels)
        merge((find_parts(x), mean, mean_square))
        return apply(x, weight, bias, mean_square), None, None, mean, mean_square

    return of_given if is_given else forward


def rectified_reduce(plan, eps):
    """What makes gradients of weight, bias and the mean of squares."""
    size = plane(plan.rows * plan.channels)
    launch = plan.launch(_rectified_sums_kernel, size, plan.affine_stride, eps)
    add = adding(plan, size, summing_of(plan, 3))

    def reduce(dy, x, weight, mean_square):
        sums = floats(x, 3 * size)
        launch((dy, x, weight, mean_square, sums))
        dweight, dbias, dsquare = new_gradients(weight, mean_square)
        add((sums, dweight, dbias, dsquare, dsquare))
        return dweight, dbias, dsquare

    return reduce


def rectified_input_gradient(plan, eps):
    """What makes dx; with a ``mean_square_grad`` None without the part of the mean of squares."""
    launch = plan.launch(_rectified_backward_kernel, plan.affine_stride, eps, plan.samples)

    def input_gradient(dy, x, weight, mean_square, mean_square_grad, count):
        dx = torch.empty_like(x)
        launch((dy, x, dx, weight, mean_square, mean_square_grad, count))
        return dx

    return input_gradient
