"""The B series, RS + rej included, in one process."""

import torch

from evonorm_plugins import formulas
from evonorm_plugins.kernels import backend
from evonorm_plugins.kernels.ops import arguments, results
from evonorm_plugins.kernels.ops.operator import Differentiable, Operator
from evonorm_plugins.statistics import batch_variance

KINDS = {"b0": True, "b1": False, "b2": False, "rs_rej": False}  # whether it has a v


def has_own(kind):
    """Whether the statistics of every sample's channels are among those of the formula."""
    return kind != "rs_rej"


def formula_of(kind, eps, group=None):
    """The plain formula, with a ``batch_var`` None that of x and of a process group."""

    def formula(x, weight, bias, v, batch_var):
        if batch_var is None:
            var, count = batch_variance(x, centred=has_own(kind), group=group)
            # Without elements anything will do but NaN.
            batch_var = torch.where(count > 0, var, 1)
        parameters = [weight, bias, batch_var] if v is None else [weight, bias, batch_var, v]
        return getattr(formulas, kind)(x, *parameters, eps=eps)

    return formula


def _forward(x, weight, bias, v, batch_var, kind, eps, impl):
    arguments.require_kind(kind, KINDS, v)
    return backend(impl).batch_forward(x, weight, bias, v, batch_var, kind, eps)


def _fit_forward(x, weight, bias, v, batch_var, kind, eps, impl):
    n, channels, _, _ = arguments.sizes(x)
    arguments.check_kind(kind, KINDS, v)
    arguments.check_eps(eps)
    weight, bias = arguments.gamma_and_beta(weight, bias, x, n, channels)
    v = None if v is None else arguments.per_channel("v", v, x, channels)
    if batch_var is not None:
        batch_var = arguments.per_channel("batch_var", batch_var, x, channels)
    module, x = arguments.module_for(impl, x), arguments.dense(x)
    if x.numel() == 0:
        own = channels if batch_var is None else 0
        nan = torch.full((own,), float("nan"), device=x.device)
        found = results.zeros(x, 2, n, channels) if has_own(kind) else (None, None)
        return torch.empty_like(x), *found, torch.zeros_like(nan), nan
    return module.batch_forward(x, weight, bias, v, batch_var, kind, eps)


def _backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps, impl):
    arguments.require_kind(kind, KINDS, v)
    given = mean, var, batch_mean, batch_var
    return backend(impl).batch_backward(dy, x, weight, v, *given, kind, eps)


def _fit_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps, impl):
    n, channels, _, _ = arguments.sizes(x)
    arguments.check_kind(kind, KINDS, v)
    arguments.check_eps(eps)
    if has_own(kind):
        mean = arguments.per_sample("mean", mean, x, n, channels)
        var = arguments.per_sample("var", var, x, n, channels)
    elif mean is not None or var is not None:
        raise ValueError(f"mean or var is given, but kind={kind!r} has none of samples")
    weight32 = arguments.gamma(weight, x, n, channels)
    v32 = None if v is None else arguments.per_channel("v", v, x, channels)
    batch_var32 = arguments.per_channel("batch_var", batch_var, x, channels)
    if batch_mean is not None:
        batch_mean = arguments.per_channel("batch_mean", batch_mean, x, channels)
    module, (x, dy) = arguments.module_for(impl, x), arguments.dense_pair(x, dy)
    if x.numel() == 0:
        dbatch_var = torch.zeros_like(batch_var) if batch_mean is None else None
        return torch.empty_like(x), *results.no_gradients(weight, v), dbatch_var
    dx, dweight, dbias, dv, dbatch_var = module.batch_backward(
        dy, x, weight32, v32, mean, var, batch_mean, batch_var32, kind, eps
    )
    parameters = results.as_given(dweight, dbias, dv, weight, v)
    return dx, *parameters, dbatch_var.to(batch_var.dtype) if batch_mean is None else None


def _fake_forward(x, weight, bias, v, batch_var, kind, eps, impl):
    n, channels = x.shape[:2]
    own = channels if batch_var is None else 0
    batch = [x.new_empty(own, dtype=torch.float32) for _ in range(2)]
    if not has_own(kind):
        return results.fake_like(x), results.nothing(x), results.nothing(x), *batch
    mean, var = (x.new_empty(n, channels, dtype=torch.float32) for _ in range(2))
    return results.fake_like(x), mean, var, *batch


def _fake_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps, impl):
    dbatch_var = torch.empty_like(batch_var) if batch_mean is None else results.nothing(x)
    return *results.fake_gradients(x, weight, v), dbatch_var


def _gradients(ctx, dy):
    x, weight, v, batch_var, mean, var, own_mean, own_var = ctx.saved_tensors
    kind, eps, impl = ctx.options
    if torch.is_grad_enabled():
        tensors = (x, weight, results.any_bias(weight), v, batch_var)
        needed = ctx.needs_input_grad[:5]
        return formulas.gradients(formula_of(kind, eps), tensors, dy, needed)
    if not has_own(kind):
        mean = var = None
    given = (own_mean, own_var) if batch_var is None else (None, batch_var)
    found = _batch_backward(dy, x, weight, v, mean, var, *given, kind, eps, impl)
    dx, dweight, dbias, dv, dbatch_var = found
    return (
        dx,
        dweight,
        dbias,
        dv if v is not None else None,
        dbatch_var if batch_var is not None else None,
    )


# ``(y, batch_var)``. ``kind`` is one of KINDS. ``batch_var`` None: the variance of x over batch and
# space, NaN where x is empty; in "rs_rej", which has no mean and var of samples, the mean of
# squares.
apply_batch = Differentiable(
    "batch(Tensor x, Tensor weight, Tensor bias, Tensor? v, Tensor? batch_var, str kind, "
    "float eps, str impl) -> "
    "(Tensor y, Tensor mean, Tensor var, Tensor batch_mean, Tensor new_batch_var)",
    tensors=5,
    kernel=_forward,
    fit=_fit_forward,
    fake=_fake_forward,
    backward=_gradients,
    shows_last=True,
    unsaved=("bias",),
)
_batch_backward = Operator(
    "batch_backward(Tensor dy, Tensor x, Tensor weight, Tensor? v, Tensor? mean, Tensor? var, "
    "Tensor? batch_mean, Tensor batch_var, str kind, float eps, str impl) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dv, Tensor dbatch_var)",
    tensors=8,
    kernel=_backward,
    fit=_fit_backward,
    fake=_fake_backward,
)
