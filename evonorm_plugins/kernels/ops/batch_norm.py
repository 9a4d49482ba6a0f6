"""Batch normalization with an activation, in one process."""

import torch

from evonorm_plugins import formulas
from evonorm_plugins.kernels import backend
from evonorm_plugins.kernels.ops import arguments, results
from evonorm_plugins.kernels.ops.group import ACTIVATIONS, check_activation
from evonorm_plugins.kernels.ops.operator import Differentiable, Operator


def _forward(x, weight, bias, v, batch_mean, batch_var, act, eps, impl):
    arguments.require_kind(act, ACTIVATIONS, v)
    return backend(impl).batch_norm_forward(x, weight, bias, v, batch_mean, batch_var, act, eps)


def _fit_forward(x, weight, bias, v, batch_mean, batch_var, act, eps, impl):
    n, channels, _, _ = arguments.sizes(x)
    check_activation(act, v)
    arguments.check_eps(eps)
    weight, bias = arguments.gamma_and_beta(weight, bias, x, n, channels)
    v = None if v is None else arguments.per_channel("v", v, x, channels)
    if (batch_mean is None) is not (batch_var is None):
        raise ValueError("batch_mean and batch_var are not both given, or both None")
    if batch_mean is not None:
        batch_mean = arguments.per_channel("batch_mean", batch_mean, x, channels)
        batch_var = arguments.per_channel("batch_var", batch_var, x, channels)
    module, x = arguments.module_for(impl, x), arguments.dense(x)
    if x.numel() == 0:
        rows = 3 if batch_mean is None else 2
        return torch.empty_like(x), torch.full((rows, channels), float("nan"), device=x.device)
    return module.batch_norm_forward(x, weight, bias, v, batch_mean, batch_var, act, eps)


def _backward(dy, x, weight, bias, v, batch_statistics, act, impl):
    arguments.require_kind(act, ACTIVATIONS, v)
    return backend(impl).batch_norm_backward(dy, x, weight, bias, v, batch_statistics, act)


def _fit_backward(dy, x, weight, bias, v, batch_statistics, act, impl):
    n, channels, _, _ = arguments.sizes(x)
    check_activation(act, v)
    batch_statistics = arguments.of_batch("batch_statistics", batch_statistics, x, channels)
    weight32, bias32 = arguments.gamma_and_beta(weight, bias, x, n, channels)
    v32 = None if v is None else arguments.per_channel("v", v, x, channels)
    module, (x, dy) = arguments.module_for(impl, x), arguments.dense_pair(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), *results.no_gradients(weight, v)
    dx, dweight, dbias, dv = module.batch_norm_backward(
        dy, x, weight32, bias32, v32, batch_statistics, act
    )
    return dx, *results.as_given(dweight, dbias, dv, weight, v)


def _fake_forward(x, weight, bias, v, batch_mean, batch_var, act, eps, impl):
    rows = 3 if batch_mean is None else 2
    return results.fake_like(x), x.new_empty(rows, x.shape[1], dtype=torch.float32)


def _fake_backward(dy, x, weight, bias, v, batch_statistics, act, impl):
    return results.fake_gradients(x, weight, v)


def _gradients(ctx, dy):
    x, weight, bias, v, statistics = ctx.saved_tensors
    act, eps, impl = ctx.options
    if torch.is_grad_enabled():
        given = None if len(statistics) == 3 else statistics

        def formula(x, weight, bias, v):
            return formulas.batch_norm(x, weight, bias, v, statistics=given, act=act, eps=eps)

        found = formulas.gradients(formula, (x, weight, bias, v), dy, ctx.needs_input_grad[:4])
        return *found, None, None
    found = _batch_norm_backward(dy, x, weight, bias, v, statistics, act, impl)
    dx, dweight, dbias, dv = found
    return dx, dweight, dbias, None if v is None else dv, None, None


# ``(y, statistics)``; see functional.batch_norm_act. ``batch_mean`` and ``batch_var`` None: those
# of x over batch and space. ``statistics`` has rows: mean, 1 / std and, then, the unbiased
# variance, for moving averages. It is NaN where x is empty.
apply_batch_norm = Differentiable(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? v, Tensor? batch_mean, "
    "Tensor? batch_var, str act, float eps, str impl) -> (Tensor y, Tensor statistics)",
    tensors=6,
    kernel=_forward,
    fit=_fit_forward,
    fake=_fake_forward,
    backward=_gradients,
    shows_last=True,
    unsaved=("batch_mean", "batch_var"),
)
_batch_norm_backward = Operator(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor? v, "
    "Tensor batch_statistics, str act, str impl) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dv)",
    tensors=6,
    kernel=_backward,
    fit=_fit_backward,
    fake=_fake_backward,
)
