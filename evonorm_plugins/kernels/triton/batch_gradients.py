"""The gradients of the B series."""

import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.batch import instance_side, instance_std
from evonorm_plugins.kernels.triton.buffers import (
    add_rows,
)
from evonorm_plugins.kernels.triton.tiles import (
    add_chunks,
    count_tiles,
    divide,
    kernel,
    load,
    maximum,
    parameter,
    pixels,
    pixels_from_end,
    place,
    store,
    sums,
    to_channels,
    wide,
    wide_parameter,
)


@triton.jit
def _sides(dy, x, v, std, batch_std, KIND: tl.constexpr, FAST: tl.constexpr):
    """1 / m, and what goes of dy x / m^2 to the instance's and to the batch's side."""
    side = instance_side(x, v, std, KIND)
    q = divide(1.0, maximum(side, batch_std), FAST)
    e = dy * x * q * q
    # As in torch.maximum, either side gets half of a tie. No comparison holds for NaN, which so
    # gets to both.
    e = tl.where(side == batch_std, 0.5 * e, e)
    return q, tl.where(side < batch_std, 0, e), tl.where(side > batch_std, 0, e)


@triton.jit
def _terms(dy_ptr, x_ptr, v, std, batch_std, tile, KIND: tl.constexpr, FAST: tl.constexpr):
    """What a tile adds to the sums of batch_sums_kernel."""
    dy = load(dy_ptr, tile, 0, False)
    x = load(x_ptr, tile, 1, False)  # not 0, for v may be infinite
    q, to_instance, to_batch = _sides(dy, x, v, std, batch_std, KIND, FAST)
    by_std = to_instance * (x + 1) if KIND == "b1" else to_instance
    return dy * x * q, dy, by_std, to_batch, to_instance * x


@kernel
def batch_sums_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (N, C)
    var_ptr,  # (N, C)
    batch_var_ptr,  # (C,)
    sums_ptr,  # out: (3 or 4, N, chunks, C), for dweight, dbias, dbatch_var, dv
    dstd_ptr,  # out: (N, chunks, C)
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
    at = place(C, HW, chunk, chunks, False, T)
    mean, var = parameter(mean_ptr, C, at), parameter(var_ptr, C, at)
    std = wide(instance_std(mean, var, eps, KIND))
    batch_std = tl.sqrt(parameter(batch_var_ptr, 0, at) + eps)
    v = wide_parameter(v_ptr, 0, at)
    terms = _terms(dy_ptr, x_ptr, v, std, wide(batch_std), pixels(at.first, at, T), KIND, T.FAST)
    scale, shift, instance, batch, slope = terms
    if not T.ONE:
        for start in range(at.first + T.P, at.end, T.P):
            tile = pixels(start, at, T)
            terms = _terms(dy_ptr, x_ptr, v, std, wide(batch_std), tile, KIND, T.FAST)
            scale += terms[0]
            shift += terms[1]
            instance += terms[2]
            batch += terms[3]
            slope += terms[4]
    weight = -parameter(weight_ptr, weight_stride, at)
    sums_ptr += at.row * C + at.c
    tl.store(dstd_ptr + at.row * C + at.c, sums(instance, T.K, T) * weight, at.inside)
    tl.store(sums_ptr, sums(scale, T.K, T), at.inside)
    tl.store(sums_ptr + plane, sums(shift, T.K, T), at.inside)
    tl.store(sums_ptr + 2 * plane, sums(batch, T.K, T) * weight / (2 * batch_std), at.inside)
    if v is not None:
        tl.store(sums_ptr + 3 * plane, sums(slope, T.K, T) * weight, at.inside)


@kernel
def batch_backward_kernel(
    dy_ptr,  # as x
    x_ptr,  # (N, C, H, W)
    dx_ptr,  # out: as x
    weight_ptr,  # (C,) or (N, C)
    v_ptr,  # (C,) or None
    mean_ptr,  # (N, C)
    var_ptr,  # (N, C)
    batch_mean_ptr,  # (C,), or None: batch_var is not of x
    batch_var_ptr,  # (C,)
    dstd_ptr,  # (N, parts, C)
    dbatch_var_ptr,  # (C,); out where ADD
    count_ptr,  # () elements of the batch, or None: those of x
    sums_ptr,  # (3 or 4, N, chunks, C), for dweight, dbias, dbatch_var, dv, where ADD
    dweight_ptr,  # out where ADD: as weight
    dbias_ptr,  # likewise
    dv_ptr,  # out where ADD and v is: (C,)
    plane: tl.int64,  # of sums: elements from one of them to the next
    rows,  # of sums that are added up to one output
    outputs,
    extra,  # programs that do so; the others make dx
    parts,  # of dstd
    weight_stride,
    eps,
    N,
    C,
    HW: tl.int64,
    chunk: tl.int64,
    chunks,
    KIND: tl.constexpr,
    ADD: tl.constexpr,  # whether sums are added up here
    G: tl.constexpr,  # of add_rows
    R: tl.constexpr,
    T: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < extra:
        if ADD:
            out_ptrs = (dweight_ptr, dbias_ptr, dbatch_var_ptr, dv_ptr)
            add_rows(pid, sums_ptr, out_ptrs, plane, rows, outputs, C, G, R)
    else:
        at = place(C, HW, chunk, chunks, True, T, extra)
        weight = wide_parameter(weight_ptr, weight_stride, at)
        mean = parameter(mean_ptr, C, at)
        std = instance_std(mean, parameter(var_ptr, C, at), eps, KIND)
        dstd = to_channels(add_chunks(dstd_ptr, at.n, parts, at, T), T)
        pull = wide(dstd / (std * HW.to(tl.float32)))
        mean, std = wide(mean), wide(std)
        batch_std = wide(tl.sqrt(parameter(batch_var_ptr, 0, at) + eps))
        v = wide_parameter(v_ptr, 0, at)
        if batch_mean_ptr is not None:
            count = tl.load(count_ptr) if count_ptr is not None else (HW * N).to(tl.float32)
            batch_mean = wide_parameter(batch_mean_ptr, 0, at)
            if ADD:
                whole = add_chunks(sums_ptr + 2 * plane, at.n * 0, chunks * N, at, T)
                dbatch_var = to_channels(whole, T)
            else:
                dbatch_var = parameter(dbatch_var_ptr, 0, at)
            batch_pull = wide(dbatch_var * (2 / count))
        for i in range(0, count_tiles(at, T)):
            tile = pixels_from_end(i, at, T)
            dy = load(dy_ptr, tile, 0, True) * weight
            x = load(x_ptr, tile, 0, True)
            q, to_instance, _to_batch = _sides(dy, x, v, std, batch_std, KIND, T.FAST)
            if KIND == "b0":
                dx = dy * q - to_instance * v + pull * (x - mean)
            elif KIND == "b1":
                dx = dy * q - to_instance * std + pull * x
            else:
                dx = dy * q + to_instance + pull * x
            if batch_mean_ptr is not None:
                dx += batch_pull * (x - batch_mean)
            store(dx_ptr, dx, tile)
