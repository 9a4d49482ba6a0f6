"""The B series with the variance of all ranks of a process group."""

import torch

from evonorm_plugins import formulas
from evonorm_plugins.kernels.ops import arguments, results
from evonorm_plugins.kernels.ops.batch import KINDS, formula_of, has_own
from evonorm_plugins.statistics import AllReduceSum, gather_moments, merge_moments


def apply_batch_of_group(x, weight, bias, v, group, kind, eps, impl):
    """``(y, batch_var)``; ``kind`` and v as of ``apply_batch``."""
    return _BatchOfGroup.apply(x, weight, bias, v, group, kind, eps, impl)


class _BatchOfGroup(torch.autograd.Function):
    """One collective forward and one backward, which every rank enters, samples or not."""

    @staticmethod
    def forward(ctx, x, weight, bias, v, group, kind, eps, impl):
        n, c, h, w = arguments.sizes(x)
        arguments.check_kind(kind, KINDS, v)
        arguments.check_eps(eps)
        p, b = arguments.gamma_and_beta(weight, bias, x, n, c)
        v32 = None if v is None else arguments.per_channel("v", v, x, c)
        module, dense = arguments.module_for(impl, x), arguments.dense(x)
        mean, var = results.zeros(x, 2, n, c)
        if x.numel():
            mean, var = module.batch_moments(dense, has_own(kind))
        # float64 on every rank: with mean 1e3 and std 1e-2, rounded means would be too far off.
        mean, var = mean.double(), var.double()
        counts = mean.new_full((n,), h * w)
        merged = gather_moments(*merge_moments(counts, mean, var * (h * w)), group)
        count, batch_mean, m2 = (t.float() for t in merge_moments(*merged))
        batch_var = m2 / count
        mean, var = mean.float(), var.float()
        if not has_own(kind):
            mean = var = None
        y = torch.empty_like(dense)
        if x.numel():
            y = module.batch_apply(dense, p, b, v32, mean, var, batch_var, kind, eps)
        ctx.save_for_backward(x, weight, bias, v, mean, var, batch_mean, batch_var, count)
        ctx.mark_non_differentiable(batch_var)
        ctx.options = group, kind, eps, impl
        return y, batch_var

    @staticmethod
    def backward(ctx, dy, _):
        x, weight, bias, v, mean, var, batch_mean, batch_var, count = ctx.saved_tensors
        group, kind, eps, impl = ctx.options
        if torch.is_grad_enabled():
            tensors, needed = (x, weight, bias, v, None), [*ctx.needs_input_grad[:4], False]
            found = formulas.gradients(formula_of(kind, eps, group), tensors, dy, needed)
            return *found[:4], None, None, None, None
        n, c, _, _ = x.shape
        module, p = arguments.module_for(impl, x), arguments.gamma(weight, x, n, c)
        v32 = None if v is None else arguments.per_channel("v", v, x, c)
        dense, dy = arguments.dense_pair(x, dy)
        dweight, dbias, dv = results.no_gradients(weight, v)
        dbatch_var = torch.zeros_like(batch_var)
        if x.numel():
            dweight, dbias, dv, dstd, dbatch_var = module.batch_reduce(
                dy, dense, p, v32, mean, var, batch_var, kind, eps
            )
            dweight, dbias, dv = results.as_given(dweight, dbias, dv, weight, v)
        dbatch_var = AllReduceSum.apply(dbatch_var, group)
        dx = torch.empty_like(dense)
        if x.numel():
            own = mean, var, batch_mean, batch_var
            dx = module.batch_input_gradient(
                dy, dense, p, v32, *own, dstd, dbatch_var, count, kind, eps
            )
        return dx, dweight, dbias, None if v is None else dv, None, None, None, None
