"""The affine transform: what the paper puts where no activation follows."""

import torch
import triton.language as tl

from evonorm_plugins.kernels.triton.buffers import fused_gradients
from evonorm_plugins.kernels.triton.entry import entry
from evonorm_plugins.kernels.triton.plan import make_plan
from evonorm_plugins.kernels.triton.tiles import (
    count_tiles,
    kernel,
    load,
    pixels,
    place,
    store,
    sums,
    wide_parameter,
)


@kernel
def _affine_forward_kernel(
    x_ptr,  # (N, C, H, W)
    y_ptr,  # out: as x
    weight_ptr,  # gamma: (C,) or (N, C)
    bias_ptr,  # beta: as gamma
    weight_stride,  # of the samples of gamma and beta: 0 or C
    C,
    HW: tl.int64,
    chunk: tl.int64,  # tiles of a chunk of pixels
    chunks,
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, False, T)
    weight = wide_parameter(weight_ptr, weight_stride, at)
    bias = wide_parameter(bias_ptr, weight_stride, at)
    for i in range(0, count_tiles(at, T)):
        tile = pixels(at.first + i * T.P, at, T)
        store(y_ptr, load(x_ptr, tile, 0, False) * weight + bias, tile)


@kernel
def _affine_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    sums_ptr,  # out: (2, N, chunks, C), for dweight and dbias
    plane: tl.int64,  # of sums: elements from one of them to the next
    weight_stride,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    T: tl.constexpr,
):
    at = place(C, HW, chunk, chunks, False, T)
    weight = wide_parameter(weight_ptr, weight_stride, at)
    scale = tl.full([T.Q, T.K, T.L], 0, tl.float32)
    shift = tl.full([T.Q, T.K, T.L], 0, tl.float32)
    for i in range(0, count_tiles(at, T)):
        tile = pixels(at.first + i * T.P, at, T)
        x = load(x_ptr, tile, 0, False)
        dy = load(dy_ptr, tile, 0, False)
        store(dx_ptr, dy * weight, tile)
        scale += dy * x
        shift += dy
    sums_ptr += at.row * C + at.c
    tl.store(sums_ptr, sums(scale, T.K, T), at.inside)
    tl.store(sums_ptr + plane, sums(shift, T.K, T), at.inside)


@entry("xgb")
def affine_forward(sizes):
    """``x weight + bias``."""
    plan = make_plan(sizes, 1, 1, chunked=True)
    launch = plan.launch(_affine_forward_kernel, plan.affine_stride)

    def forward(x, weight, bias):
        y = torch.empty_like(x)
        launch((x, y, weight, bias))
        return y

    return forward


@entry("dxg")
def affine_backward(sizes):
    """Gradients ``dx, dweight, dbias`` of :func:`affine_forward`, of ``dy, x, weight``."""
    plan = make_plan(sizes, 1, 2, chunked=True)
    size, new, add = fused_gradients(plan, has_v=False)
    launch = plan.launch(_affine_backward_kernel, size, plan.affine_stride)

    def backward(dy, x, weight):
        dx = torch.empty_like(x)
        sums, gradients = new(weight, None)
        launch((dy, x, dx, weight, sums))
        add(sums, gradients)
        return dx, gradients[0], gradients[1]

    return backward
