"""The S series."""

import torch

from evonorm_plugins import formulas
from evonorm_plugins.kernels import backend
from evonorm_plugins.kernels.ops import arguments, results
from evonorm_plugins.kernels.ops.operator import Differentiable, Operator

_KINDS = {"s0": True, "s1": False, "s2": False, "s2v": True}  # whether it has a v
_CENTRED = {"s0", "s1"}


def _forward(x, weight, bias, v, kind, groups, eps, impl):
    arguments.require_kind(kind, _KINDS, v)
    return backend(impl).sample_forward(x, weight, bias, v, groups, eps, kind in _CENTRED)


def _fit_forward(x, weight, bias, v, kind, groups, eps, impl):
    n, channels, _, _ = arguments.sizes(x)
    arguments.check_kind(kind, _KINDS, v)
    arguments.check_groups(groups, channels)
    arguments.check_eps(eps)
    weight, bias = arguments.gamma_and_beta(weight, bias, x, n, channels)
    v = None if v is None else arguments.per_channel("v", v, x, channels)
    module, x = arguments.module_for(impl, x), arguments.dense(x)
    if x.numel() == 0:
        return torch.empty_like(x), *results.zeros(x, 1, 2, n, groups)
    return module.sample_forward(x, weight, bias, v, groups, eps, kind in _CENTRED)


def _backward(dy, x, weight, v, mean_rstd, kind, impl):
    arguments.require_kind(kind, _KINDS, v)
    return backend(impl).sample_backward(dy, x, weight, v, mean_rstd, kind in _CENTRED)


def _fit_backward(dy, x, weight, v, mean_rstd, kind, impl):
    n, channels, _, _ = arguments.sizes(x)
    arguments.check_kind(kind, _KINDS, v)
    mean_rstd = arguments.of_groups("mean_rstd", mean_rstd, x, n, channels)
    weight32 = arguments.gamma(weight, x, n, channels)
    v32 = None if v is None else arguments.per_channel("v", v, x, channels)
    module, (x, dy) = arguments.module_for(impl, x), arguments.dense_pair(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), *results.no_gradients(weight, v)
    dx, dweight, dbias, dv = module.sample_backward(
        dy, x, weight32, v32, mean_rstd, kind in _CENTRED
    )
    return dx, *results.as_given(dweight, dbias, dv, weight, v)


def _fake_forward(x, weight, bias, v, kind, groups, eps, impl):
    return results.fake_like(x), x.new_empty(2, x.shape[0], groups, dtype=torch.float32)


def _fake_backward(dy, x, weight, v, mean_rstd, kind, impl):
    return results.fake_gradients(x, weight, v)


def _gradients(ctx, dy):
    x, weight, v, mean_rstd = ctx.saved_tensors
    kind, groups, eps, impl = ctx.options
    if torch.is_grad_enabled():

        def formula(x, weight, bias, v):
            parameters = [weight, bias] if v is None else [weight, bias, v]
            return getattr(formulas, kind)(x, *parameters, groups=groups, eps=eps)

        tensors = (x, weight, results.any_bias(weight), v)
        return formulas.gradients(formula, tensors, dy, ctx.needs_input_grad[:4])
    dx, dweight, dbias, dv = _sample_backward(dy, x, weight, v, mean_rstd, kind, impl)
    return dx, dweight, dbias, None if v is None else dv


# y. ``kind`` is one of _KINDS; v None in those that have none; groups divide the channels.
apply_sample = Differentiable(
    "sample(Tensor x, Tensor weight, Tensor bias, Tensor? v, str kind, int groups, float eps, "
    "str impl) -> (Tensor y, Tensor mean_rstd)",
    tensors=4,
    kernel=_forward,
    fit=_fit_forward,
    fake=_fake_forward,
    backward=_gradients,
    unsaved=("bias",),
)
_sample_backward = Operator(
    "sample_backward(Tensor dy, Tensor x, Tensor weight, Tensor? v, Tensor mean_rstd, "
    "str kind, str impl) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dv)",
    tensors=5,
    kernel=_backward,
    fit=_fit_backward,
    fake=_fake_backward,
)
