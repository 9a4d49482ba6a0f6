"""The gradients of the B series."""

import math

import torch
import triton
import triton.language as tl

from evonorm_plugins.kernels.triton.batch import instance_side, instance_std
from evonorm_plugins.kernels.triton.buffers import (
    NO_SUMMING,
    add_rows,
    adding,
    floats,
    new_gradients,
    plane,
    summing,
    summing_of,
)
from evonorm_plugins.kernels.triton.entry import entry, require
from evonorm_plugins.kernels.triton.plan import make_plan
from evonorm_plugins.kernels.triton.rectified import rectified_input_gradient, rectified_reduce
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
    """What a tile adds to the sums of _batch_sums_kernel."""
    dy = load(dy_ptr, tile, 0, False)
    x = load(x_ptr, tile, 1, False)  # not 0, for v may be infinite
    q, to_instance, to_batch = _sides(dy, x, v, std, batch_std, KIND, FAST)
    by_std = to_instance * (x + 1) if KIND == "b1" else to_instance
    return dy * x * q, dy, by_std, to_batch, to_instance * x


@kernel
def _batch_sums_kernel(
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


@entry("dxgcooc")
def batch_reduce(sizes, kind, eps):
    """Gradients ``dweight, dbias, dv, dstd, dbatch_var``; ``dv`` None where v is.

    Of dy, x, weight, v, mean, var, batch_var. ``dstd`` ``(N, parts, C)``: parts of the gradient by
    the root of each sample's own statistic, of b0 ``sqrt(var + eps)``, of b1 and b2 ``r``; None in
    "rs_rej".
    """
    plan = make_plan(sizes, 1, 2, chunked=True)
    if kind == "rs_rej":
        reduce_rectified = rectified_reduce(plan, eps)

        def of_rectified(dy, x, weight, v, mean, var, batch_var):
            dweight, dbias, dbatch_var = reduce_rectified(dy, x, weight, batch_var)
            return dweight, dbias, None, None, dbatch_var

        return of_rectified
    has_v = not sizes.absent & _V
    size, reduce = _reduce(plan, has_v, kind, eps)
    add = _add(plan, size, has_v)

    def backward(dy, x, weight, v, mean, var, batch_var):
        sums, dstd = reduce(dy, x, weight, v, mean, var, batch_var)
        return add(sums, dstd, weight, v)

    return backward


@entry("dxgcooccaca")
def batch_input_gradient(sizes, kind, eps):
    """dx, from what :func:`batch_reduce` returned.

    Of dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count. ``batch_mean``
    ``(C,)``: mean of the batch whose variance ``batch_var`` is; None: it did not come from x.
    ``count``: float32 scalar tensor, elements of that batch; None: those of x.
    """
    plan = make_plan(sizes, 1, 2, chunked=True)
    if kind == "rs_rej":
        finish = rectified_input_gradient(plan, eps)

        def of_rectified(dy, x, weight, v, mean, var, batch_mean, batch_var, _, dbatch_var, count):
            own = None if batch_mean is None else dbatch_var
            return finish(dy, x, weight, batch_var, own, count)

        return of_rectified
    finish = _input_gradient(plan, 0, NO_SUMMING, kind, eps)

    def backward(dy, x, *given):
        return finish(dy, x, given, (given[6],) * 4)

    return backward


@entry("dxgcoocc")
def batch_backward(sizes, kind, eps):
    """Gradients ``dx, dweight, dbias, dv, dbatch_var`` of the B series.

    Of dy, x, weight, v, mean, var, batch_mean, batch_var. ``batch_mean`` ``(C,)`` or None: as in
    :func:`batch_input_gradient`. With one there is no dbatch_var: None.
    """
    require(0 <= eps < math.inf and not sizes.absent & _BATCH_VAR)
    require(bool(sizes.absent & _MEAN) == bool(sizes.absent & _VAR) == (kind == "rs_rej"))
    plan = make_plan(sizes, 1, 2, chunked=True)
    is_own, has_v = not sizes.absent & _BATCH_MEAN, not sizes.absent & _V
    if kind == "rs_rej":
        return _rectified_backward(plan, eps, is_own)
    size, reduce = _reduce(plan, has_v, kind, eps)
    if plan.merged or (plan.spread and is_own):
        add = _add(plan, size, has_v)
        finish = _input_gradient(plan, 0, NO_SUMMING, kind, eps)

        def in_steps(dy, x, weight, v, mean, var, batch_mean, batch_var):
            sums, dstd = reduce(dy, x, weight, v, mean, var, batch_var)
            *parameters, dstd, dbatch_var = add(sums, dstd, weight, v)
            given = (weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, None)
            dx = finish(dy, x, given, (dstd,) * 4)
            return dx, *parameters, None if is_own else dbatch_var

        return in_steps
    finish = _input_gradient(plan, size, summing_of(plan, 4 if has_v else 3), kind, eps)

    def backward(dy, x, weight, v, mean, var, batch_mean, batch_var):
        sums, dstd = reduce(dy, x, weight, v, mean, var, batch_var)
        dweight, dbias, dv = new_gradients(weight, v)
        dbatch_var = torch.empty_like(batch_var)
        given = (weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, None)
        dx = finish(dy, x, given, (sums, dweight, dbias, sums if dv is None else dv))
        return dx, dweight, dbias, dv, None if is_own else dbatch_var

    return backward


# Bits of the tensors of batch_backward; of the others, as far as they have them.
_V, _MEAN, _VAR, _BATCH_MEAN, _BATCH_VAR = (1 << i for i in range(3, 8))


def _rectified_backward(plan, eps, is_own):
    reduce, finish = rectified_reduce(plan, eps), rectified_input_gradient(plan, eps)

    def backward(dy, x, weight, v, mean, var, batch_mean, batch_var):
        dweight, dbias, dbatch_var = reduce(dy, x, weight, batch_var)
        dx = finish(dy, x, weight, batch_var, dbatch_var if is_own else None, None)
        return dx, dweight, dbias, None, None if is_own else dbatch_var

    return backward


def _reduce(plan, has_v, kind, eps):
    """Elements of a plane, and what makes planes of sums and dstd."""
    number, size = 4 if has_v else 3, plane(plan.rows * plan.channels)
    launch = plan.launch(_batch_sums_kernel, size, plan.affine_stride, eps, KIND=kind)
    shape = (plan.samples, plan.chunks, plan.channels)

    def reduce(dy, x, weight, v, mean, var, batch_var):
        sums, dstd = floats(x, number * size), floats(x, *shape)
        launch((dy, x, weight, v, mean, var, batch_var, sums, dstd))
        return sums, dstd

    return size, reduce


def _add(plan, size, has_v):
    """What makes dweight, dbias, dv, dstd of few parts, and dbatch_var of planes of sums."""
    add = adding(plan, size, summing_of(plan, 4 if has_v else 3))
    how = summing(plan.samples, plan.chunks, plan.channels, 1, True)
    merge = adding(plan, 0, how) if plan.merged else None

    def gradients(sums, dstd, weight, v):
        dweight, dbias, dv = new_gradients(weight, v)
        dbatch_var = floats(weight, plan.channels)
        add((sums, dweight, dbias, dbatch_var, dbatch_var if dv is None else dv))
        if merge:
            parts, dstd = dstd, floats(dstd, plan.samples, 1, plan.channels)
            merge((parts, dstd, dstd, dstd, dstd))
        return dweight, dbias, dv, dstd, dbatch_var

    return gradients


def _input_gradient(plan, size, how, kind, eps):
    """What makes dx; and planes of sums are added up, by the Summing ``how``."""
    # As many parts has a dstd that nobody has merged.
    parts = 1 if plan.merged else plan.chunks
    values = (size, how.rows, how.outputs, how.programs, parts, plan.affine_stride, eps)
    constants = {"KIND": kind, "ADD": how.programs > 0, **how.at_once}
    launch = plan.launch(
        _batch_backward_kernel, *values, plan.samples, extra=how.programs, **constants
    )

    def input_gradient(dy, x, given, out):
        dx = torch.empty_like(x)
        launch((dy, x, dx, *given, *out))
        return dx

    return input_gradient
