"""A layer graph by the fused operator that computes its formula."""

import torch

from evonorm_plugins.functional import channel_affine, group_norm_act
from evonorm_plugins.layers.graph import primitives
from evonorm_plugins.modes import compute_dtype
from evonorm_plugins.series import series_b, series_b_train, series_s


def apply_formula(formula, x, weight, bias, values, given, group, *, groups, eps, impl):
    """Output, and the variance or mean of squares of the batch, None where there is none.

    Args:
        formula: :class:`evonorm_plugins.layers.graph.fused.FusedFormula`.
        x: ``(N, C, H, W)``.
        weight, bias: gamma and beta behind the graph, ``(C,)`` or ``(N, C)``.
        values: ``{node: (C,)}`` of its constants.
        given: ``(C,)``, what the moving node has under its root; None takes that of x.
        group: process group to merge statistics over, or None.
    """
    dtype, channels = compute_dtype(x), x.shape[1]

    def vector(number):
        return torch.full((channels,), number, dtype=dtype, device=x.device)

    def stepped(steps):
        """Factor and summand that steps come to, None for 1 and for 0."""
        factor = summand = None
        for op, node in steps:
            if op == "add":
                summand = values[node] if summand is None else summand + values[node]
            elif op == "mul":
                factor = values[node] if factor is None else factor * values[node]
                summand = summand if summand is None else summand * values[node]
            elif op == "neg":
                factor = vector(-1.0) if factor is None else -factor
                summand = summand if summand is None else -summand
            else:
                factor = vector(1.0) if factor is None else factor
                factor = primitives.div(factor, values[node], eps)
                summand = summand if summand is None else primitives.div(summand, values[node], eps)
        return factor, summand

    factor, summand = stepped(formula.after)
    if summand is not None:
        bias = bias + weight * summand
    if factor is not None:
        weight = weight * factor
    v = None
    if formula.v is not None:
        v, _ = stepped(formula.v)
        v = vector(1.0) if v is None else v
    if formula.mirrored:
        x = -x
    if formula.moving is not None:
        if given is not None:
            return series_b(formula.kind, x, weight, bias, v, given, eps, impl), None
        return series_b_train(formula.kind, x, weight, bias, v, group, eps, impl)
    groups = {"w,h": channels, "w,h,c": 1, "w,h,c/g": groups}[formula.over]
    if formula.kind != "group":
        return series_s(formula.kind, x, weight, bias, v, groups, eps, impl), None
    options = {"statistics": formula.statistics, "groups": groups, "eps": eps, "impl": impl}
    if formula.act == "none":
        return group_norm_act(x, weight, bias, act="none", **options), None
    # Gamma and beta come after the activation here. What is between is not rounded to half.
    inner, shift = stepped(formula.before)
    inner = vector(1.0) if inner is None else inner
    shift = vector(0.0) if shift is None else shift
    z = group_norm_act(x.to(dtype), inner, shift, v, act=formula.act, **options)
    return channel_affine(z, weight, bias, impl=impl).to(x.dtype), None
