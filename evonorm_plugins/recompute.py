"""Plain formulas of which autograd keeps no more than the inputs.

So a caller may overwrite their results in place. Compilers and the transforms of ``torch.func``
see plain operations.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evonorm_plugins import formulas
from evonorm_plugins.modes import records_gradient, takes_plain_operations
from evonorm_plugins.planes import as_planes


def apply(formula: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> Tensor:
    """``formula(*tensors, **options)``, of which eager autograd keeps ``tensors`` only."""
    x = tensors[0]
    if x.dim() != 4:
        # Viewed here: what is a view already where autograd sees it could not be overwritten.
        return apply(formula, as_planes(x), *tensors[1:], **options).reshape(x.shape)
    if takes_plain_operations() or not records_gradient(*tensors):
        return formula(*tensors, **options)
    return _Recompute.apply(formula, options, *tensors)


class _Recompute(torch.autograd.Function):
    """Keeps the inputs of a formula and evaluates it again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, formula: Callable[..., Tensor], options: dict[str, Any], *tensors: Tensor
    ) -> Tensor:
        ctx.formula, ctx.options = formula, options
        ctx.save_for_backward(*tensors)
        return formula(*tensors, **options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        formula = functools.partial(ctx.formula, **ctx.options)
        needed = ctx.needs_input_grad[2:]
        return None, None, *formulas.gradients(formula, ctx.saved_tensors, grad, needed)


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``; for the backward pass it keeps a byte an element, not the result."""
    if takes_plain_operations() or not records_gradient(x):
        return torch.relu(x)
    return _ReLU.apply(x)


class _ReLU(torch.autograd.Function):
    """Keeps one byte for each element, so that a caller may overwrite the result in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y.to(torch.bool))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (is_not_zero,) = ctx.saved_tensors
        # A product would make NaN of an infinite gradient, masked_fill takes several times as long.
        return torch.ops.aten.threshold_backward(grad, is_not_zero.to(grad.dtype), 0)
