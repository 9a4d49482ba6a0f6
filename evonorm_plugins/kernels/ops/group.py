"""Norms over groups of channels of a sample, with an activation."""

import torch

from evonorm_plugins import formulas
from evonorm_plugins.kernels import backend
from evonorm_plugins.kernels.library import Unfit
from evonorm_plugins.kernels.ops import arguments, results
from evonorm_plugins.kernels.ops.operator import Differentiable, Operator

_STATISTICS = ("norm", "std", "rms")
# Whether it has a v.
ACTIVATIONS = {"none": False, "relu": False, "silu": False, "swish": True, "tlu": True}


def check_activation(act, v):
    """Raise ValueError where there is no such activation, or v is not what it takes."""
    arguments.check_kind(act, ACTIVATIONS, v, "act")


def check_group_kind(statistics, act, v):
    """Raise ValueError where there is no such norm or activation, or v is not what it takes."""
    if statistics not in _STATISTICS:
        known = ", ".join(map(repr, _STATISTICS))
        raise ValueError(f"statistics={statistics!r} is not one of {known}")
    check_activation(act, v)


def _require_kind(statistics, act, v):
    arguments.require_kind(act, ACTIVATIONS, v)
    if statistics not in _STATISTICS:
        raise Unfit(f"there is no statistics={statistics!r}")


def _forward(x, weight, bias, v, statistics, act, groups, eps, impl):
    _require_kind(statistics, act, v)
    return backend(impl).group_forward(x, weight, bias, v, statistics, act, groups, eps)


def _fit_forward(x, weight, bias, v, statistics, act, groups, eps, impl):
    n, channels, _, _ = arguments.sizes(x)
    check_group_kind(statistics, act, v)
    arguments.check_groups(groups, channels)
    arguments.check_eps(eps)
    weight, bias = arguments.gamma_and_beta(weight, bias, x, n, channels)
    v = None if v is None else arguments.per_channel("v", v, x, channels)
    module, x = arguments.module_for(impl, x), arguments.dense(x)
    if x.numel() == 0:
        return torch.empty_like(x), *results.zeros(x, 1, 2, n, groups)
    return module.group_forward(x, weight, bias, v, statistics, act, groups, eps)


def _backward(dy, x, weight, bias, v, mean_rstd, statistics, act, impl):
    _require_kind(statistics, act, v)
    return backend(impl).group_backward(dy, x, weight, bias, v, mean_rstd, statistics, act)


def _fit_backward(dy, x, weight, bias, v, mean_rstd, statistics, act, impl):
    n, channels, _, _ = arguments.sizes(x)
    check_group_kind(statistics, act, v)
    mean_rstd = arguments.of_groups("mean_rstd", mean_rstd, x, n, channels)
    weight32, bias32 = arguments.gamma_and_beta(weight, bias, x, n, channels)
    v32 = None if v is None else arguments.per_channel("v", v, x, channels)
    module, (x, dy) = arguments.module_for(impl, x), arguments.dense_pair(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), *results.no_gradients(weight, v)
    dx, dweight, dbias, dv = module.group_backward(
        dy, x, weight32, bias32, v32, mean_rstd, statistics, act
    )
    return dx, *results.as_given(dweight, dbias, dv, weight, v)


def _fake_forward(x, weight, bias, v, statistics, act, groups, eps, impl):
    return results.fake_like(x), x.new_empty(2, x.shape[0], groups, dtype=torch.float32)


def _fake_backward(dy, x, weight, bias, v, mean_rstd, statistics, act, impl):
    return results.fake_gradients(x, weight, v)


def _gradients(ctx, dy):
    x, weight, bias, v, mean_rstd = ctx.saved_tensors
    statistics, act, groups, eps, impl = ctx.options
    if torch.is_grad_enabled():

        def formula(x, weight, bias, v):
            kind = {"statistics": statistics, "act": act}
            return formulas.group(x, weight, bias, v, **kind, groups=groups, eps=eps)

        return formulas.gradients(formula, (x, weight, bias, v), dy, ctx.needs_input_grad[:4])
    found = _group_backward(dy, x, weight, bias, v, mean_rstd, statistics, act, impl)
    dx, dweight, dbias, dv = found
    return dx, dweight, dbias, None if v is None else dv


# y; see functional.group_norm_act. groups divide the channels.
apply_group = Differentiable(
    "group(Tensor x, Tensor weight, Tensor bias, Tensor? v, str statistics, str act, int groups, "
    "float eps, str impl) -> (Tensor y, Tensor mean_rstd)",
    tensors=4,
    kernel=_forward,
    fit=_fit_forward,
    fake=_fake_forward,
    backward=_gradients,
)
_group_backward = Operator(
    "group_backward(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor? v, "
    "Tensor mean_rstd, str statistics, str act, str impl) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dv)",
    tensors=6,
    kernel=_backward,
    fit=_fit_backward,
    fake=_fake_backward,
)
