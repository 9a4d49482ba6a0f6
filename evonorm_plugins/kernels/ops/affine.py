"""The affine transform: what the paper puts where no activation follows."""

import torch

from evonorm_plugins import formulas
from evonorm_plugins.kernels import backend
from evonorm_plugins.kernels.ops import arguments, results
from evonorm_plugins.kernels.ops.operator import Differentiable, Operator


def _forward(x, weight, bias, impl):
    return backend(impl).affine_forward(x, weight, bias)


def _fit_forward(x, weight, bias, impl):
    n, channels, _, _ = arguments.sizes(x)
    weight, bias = arguments.gamma_and_beta(weight, bias, x, n, channels)
    module, x = arguments.module_for(impl, x), arguments.dense(x)
    return module.affine_forward(x, weight, bias) if x.numel() else torch.empty_like(x)


def _backward(dy, x, weight, impl):
    return backend(impl).affine_backward(dy, x, weight)


def _fit_backward(dy, x, weight, impl):
    n, channels, _, _ = arguments.sizes(x)
    weight32 = arguments.gamma(weight, x, n, channels)
    module, (x, dy) = arguments.module_for(impl, x), arguments.dense_pair(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    dx, dweight, dbias = module.affine_backward(dy, x, weight32)
    return dx, *results.as_given(dweight, dbias, None, weight, None)[:2]


def _fake_forward(x, weight, bias, impl):
    return results.fake_like(x)


def _fake_backward(dy, x, weight, impl):
    return results.fake_gradients(x, weight, None)[:3]


def _gradients(ctx, dy):
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        tensors, needed = (x, weight, results.any_bias(weight)), ctx.needs_input_grad[:3]
        return formulas.gradients(formulas.affine, tensors, dy, needed)
    return _affine_backward(dy, x, weight, *ctx.options)


# ``x * weight + bias``.
apply_affine = Differentiable(
    "affine(Tensor x, Tensor weight, Tensor bias, str impl) -> Tensor",
    tensors=3,
    kernel=_forward,
    fit=_fit_forward,
    fake=_fake_forward,
    backward=_gradients,
    unsaved=("bias",),
)
_affine_backward = Operator(
    "affine_backward(Tensor dy, Tensor x, Tensor weight, str impl) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias)",
    tensors=3,
    kernel=_backward,
    fit=_fit_backward,
    fake=_fake_backward,
)
