"""What the S series and group norms launch, forward and backward."""

import math

import torch

from evonorm_plugins.kernels.triton.buffers import (
    existing,
    floats,
    fused_gradients,
    new_gradients,
    plane,
    summing_of,
)
from evonorm_plugins.kernels.triton.entry import require
from evonorm_plugins.kernels.triton.moments import statistics
from evonorm_plugins.kernels.triton.plan import make_plan


def forward_of_groups(sizes, kernel, groups, eps, centred, constants):
    """y, and mean and rstd ``(2, N, groups)`` of x, weight, bias and v.

    ``constants``: of the kernel, but for SOURCE.
    """
    require(0 < groups <= sizes.channels and sizes.channels % groups == 0 and 0 <= eps < math.inf)
    plan = make_plan(sizes, sizes.channels // groups, 1)
    source, size, find = statistics(plan, centred, eps)
    own, stride = sizes.samples * groups, plan.affine_stride
    launch = plan.launch(kernel, size, own, stride, eps, SOURCE=source, **constants)
    samples = sizes.samples

    def forward(x, weight, bias, v):
        mean_rstd = weight.new_empty(2, samples, groups)
        parts = find(x, mean_rstd, mean_rstd)
        y = torch.empty_like(x)
        launch((x, y, weight, bias, v, parts, mean_rstd))
        return y, mean_rstd

    return forward


def backward_of_groups(sizes, whole, first, second, has_v, planes):
    """Gradients ``dx, dweight, dbias, dv`` of dy, x, weight, v, and what kernels are given of them.

    Args:
        whole, first, second: a kernel and its constants each: for a program with whole groups, and
            of chunks the two steps.
        planes: of what the first step hands on to the second.
    """
    require(sizes.channels % sizes.groups == 0)
    plan = make_plan(sizes, sizes.channels // sizes.groups, 2)
    own = sizes.samples * sizes.groups
    if plan.fused:
        return _whole(plan, own, whole, has_v)
    return _in_chunks(plan, own, first, second, has_v, planes)


def _whole(plan, own, whole, has_v):
    kernel, constants = whole
    size, new, add = fused_gradients(plan, has_v)
    launch = plan.launch(kernel, size, own, plan.affine_stride, **constants)

    def backward(dy, x, weight, v, given):
        dx = torch.empty_like(x)
        sums, gradients = new(weight, v)
        launch((dy, x, dx, *given, sums))
        add(sums, gradients)
        return dx, *gradients

    return backward


def _in_chunks(plan, own, first, second, has_v, planes):
    number = 3 if has_v else 2
    size, part = plane(plan.rows * plan.channels), plane(plan.rows * plan.units)
    before, after = (size,) if planes == 1 else (size, part), (own, plan.affine_stride)
    sum_up = plan.launch(first[0], *before, *after, **first[1])
    how = summing_of(plan, number)
    values = (*before, how.rows, how.outputs, how.programs, *after)
    finish = plan.launch(second[0], *values, extra=how.programs, **second[1], **how.at_once)

    def backward(dy, x, weight, v, given):
        dx = torch.empty_like(x)
        sums, parts = floats(x, number * size), floats(x, planes * part)
        sum_up((dy, x, *given, sums, parts))
        gradients = new_gradients(weight, v)
        finish((dy, x, dx, *given, sums, parts, *existing(gradients, sums)))
        return dx, *gradients

    return backward
