"""What the B series launches, forward and backward."""

import math

import torch

from evonorm_plugins.kernels.triton.batch import batch_forward_kernel
from evonorm_plugins.kernels.triton.batch_gradients import (
    batch_backward_kernel,
    batch_sums_kernel,
)
from evonorm_plugins.kernels.triton.buffers import (
    NO_SUMMING,
    adding,
    floats,
    new_gradients,
    plane,
    summing,
    summing_of,
)
from evonorm_plugins.kernels.triton.entry import entry, require
from evonorm_plugins.kernels.triton.moments import merging, statistics
from evonorm_plugins.kernels.triton.plan import make_plan
from evonorm_plugins.kernels.triton.rectified import (
    rectified_apply,
    rectified_forward,
    rectified_input_gradient,
    rectified_reduce,
)

# Bits of the tensors of batch_backward; of batch_reduce as far as it has them.
_V, _MEAN, _VAR, _BATCH_MEAN, _BATCH_VAR = (1 << i for i in range(3, 8))


@entry("xgbcooc")
def batch_apply(sizes, kind, eps):
    """EvoNorm-B0, B1, B2 (``kind`` "b0", "b1", "b2") of given statistics: y.

    Of x, weight, bias, v, mean, var, batch_var ``y = x / max(sqrt(batch_var + eps), t) weight +
    bias`` where t of b0, b1 and b2 is ``v x + sqrt(var + eps)``, ``(x + 1) r`` and ``r - x``, with
    ``r = sqrt(var + mean^2 + eps)``. "rs_rej", which has no mean and var: ``y = max(x, 0) /
    sqrt(batch_var + eps) weight + bias``.
    """
    _require_eps(eps)
    plan = make_plan(sizes, 1, 1, chunked=True)
    if kind == "rs_rej":
        finish = rectified_apply(plan, eps)
        return lambda x, weight, bias, v, mean, var, batch_var: finish(x, weight, bias, batch_var)
    apply = _apply(plan, "given", 0, kind, eps)

    def forward(x, weight, bias, v, mean, var, batch_var):
        return apply(x, weight, bias, v, None, batch_var, mean, mean, var)

    return forward


@entry("xgbcc")
def batch_forward(sizes, kind, eps):
    """y, mean and var ``(N, C)``, and the mean and variance ``(C,)`` of the batch.

    Of x, weight, bias, v, batch_var. The last two are empty where ``batch_var`` is given, which is
    used; else they are those of x. In "rs_rej" mean and var are None, and that of the batch is the
    mean of squares.
    """
    _require_eps(eps)
    is_given = not sizes.absent & 1 << 4
    if kind == "rs_rej":
        return rectified_forward(make_plan(sizes, 1, 1, chunked=True), eps, is_given)
    plan = make_plan(sizes, 1, 1, chunked=not is_given)
    source, size, find = statistics(plan)
    apply = _apply(plan, source, size, kind, eps)

    shape = (plan.samples, plan.channels)

    def of_given(x, weight, bias, v, batch_var):
        mean = weight.new_empty(*shape)
        var = torch.empty_like(mean)
        parts = find(x, mean, var)
        y = apply(x, weight, bias, v, None, batch_var, parts, mean, var)
        return y, mean, var, batch_var.new_empty(0), batch_var.new_empty(0)

    if is_given:
        return of_given
    merge = merging(plan, size, 1) if plan.spread or plan.merged else None

    def forward(x, weight, bias, v, _):
        mean = weight.new_empty(*shape)
        var = torch.empty_like(mean)
        parts = find(x, mean, var)
        batch_mean = weight.new_empty(plan.channels)
        batch_var = torch.empty_like(batch_mean)
        if merge:
            merge((parts, batch_mean, batch_var))
        own_mean = None if merge else batch_mean
        y = apply(x, weight, bias, v, own_mean, batch_var, parts, mean, var)
        return y, mean, var, batch_mean, batch_var

    return forward


def _require_eps(eps):
    require(0 <= eps < math.inf)


def _apply(plan, source, size, kind, eps):
    """What makes y; statistics of the batch, too, where it is given memory for their mean."""
    constants = {"KIND": kind, "SOURCE": source}
    values = (size, plan.rows, plan.affine_stride, eps)
    launch = plan.launch(batch_forward_kernel, *values, **constants)

    def apply(x, weight, bias, v, batch_mean, batch_var, parts, mean, var):
        y = torch.empty_like(x)
        launch((x, y, weight, bias, v, batch_mean, batch_var, parts, mean, var))
        return y

    return apply


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
    _require_eps(eps)
    require(not sizes.absent & _BATCH_VAR)
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
    launch = plan.launch(batch_sums_kernel, size, plan.affine_stride, eps, KIND=kind)
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
        batch_backward_kernel, *values, plan.samples, extra=how.programs, **constants
    )

    def input_gradient(dy, x, given, out):
        dx = torch.empty_like(x)
        launch((dy, x, dx, *given, *out))
        return dx

    return input_gradient
