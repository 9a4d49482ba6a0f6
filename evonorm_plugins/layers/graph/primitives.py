"""The primitives of the search in torch.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Table 1, which puts a small epsilon where stability needs one. Here that is:

- rms and std: added under the square root, as in every layer of this package.
- div: a denominator closer to 0 than eps is moved to eps or -eps.
- log, sign(x) ln|x|: |x| is at least eps, and the logarithm of 0 is 0.
- sqrt, sign(x) sqrt|x|: below eps in size the line x / sqrt(eps), whose slope is finite.

Where a denominator, a logarithm's or a root's argument is at least eps, nothing is changed.

Values broadcast to ``(N, C, H, W)``: an axis that a value does not vary over has size 1. All
primitives can be differentiated twice.
"""

import torch

from evonorm_plugins.formulas import effective_groups
from evonorm_plugins.layers.graph.operations import AGGREGATIONS
from evonorm_plugins.modes import takes_plain_operations

_DIMS = {"b,w,h": (0, 2, 3), "w,h,c": (1, 2, 3), "w,h": (2, 3)}


def div(a, b, eps):
    """``a / b`` with ``|b|`` at least eps."""
    return a / torch.where(b < 0, b.clamp(max=-eps), b.clamp(min=eps))


def log(x, eps):
    """``sign(x) ln|x|`` with ``|x|`` at least eps."""
    return x.sign() * x.abs().clamp(min=eps).log()


def sqrt(x, eps):
    """``sign(x) sqrt|x|``, ``x / sqrt(eps)`` where ``|x|`` is below eps."""
    return x / x.abs().clamp(min=eps).sqrt()


def moment(kind, over, x, groups):
    """The mean, the mean of squares ("rms") or the biased variance ("std") of ``x``.

    Args:
        over: an index set.
        groups: for w,h,c/g; see :func:`evonorm_plugins.functional.effective_groups`.

    Returns:
        What broadcasts to ``x``. Over no elements: NaN.
    """
    if over != "w,h,c/g":
        return _moment(kind, _DIMS[over], x)
    c = x.shape[1]
    if c == 1:  # the channels are equal, or there is one
        return _moment(kind, (2, 3), x)
    grouped = x.unflatten(1, (effective_groups(c, groups), -1))
    return _moment(kind, (2, 3, 4), grouped).expand((*grouped.shape[:3], 1, 1)).flatten(1, 2)


def _moment(kind, dims, x):
    count = 1
    for dim in dims:
        count = count * x.shape[dim]
    if kind != "std":
        # Not mean(), whose gradient is contiguous where x is channels_last.
        return (x.square() if kind == "rms" else x).sum(dims, keepdim=True) / count
    if takes_plain_operations() or x.device.type != "cpu":
        return x.var(dims, correction=0, keepdim=True)
    return _CpuVariance.apply(x, dims, count)


class _CpuVariance(torch.autograd.Function):
    """Biased variance, in two passes: torch's takes 3 to 5 times as long.

    Not on GPUs, where torch's reads x once and these operations several times.
    """

    @staticmethod
    def forward(ctx, x, dims, count):
        ctx.save_for_backward(x)
        ctx.dims, ctx.count = dims, count
        return _centred(x, dims, count).square_().sum(dims, keepdim=True) / count

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _centred(x, ctx.dims, ctx.count) * (grad * (2 / max(ctx.count, 1))), None, None


def _centred(x, dims, count):
    return x - x.sum(dims, keepdim=True) / count


def aggregation(kind, value, eps):
    """An aggregation from its moment."""
    return value if kind == "mean" else (value + eps).sqrt()


def maximum(a, b):
    """The larger one; where they are equal, half of the gradient goes to each."""
    return torch.maximum(a, b) if takes_plain_operations() else _Maximum.apply(a, b)


class _Maximum(torch.autograd.Function):
    """The gradient of torch's takes 2 to 4 times as long on CPUs."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        first = grad * (((a >= b).to(grad.dtype) + (a > b)) * 0.5)
        return first.sum_to_size(a.shape), (grad - first).sum_to_size(b.shape)


_ELEMENTWISE = {
    "add": torch.add,
    "mul": torch.mul,
    "max": maximum,
    "neg": torch.neg,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "square": torch.square,
}
_WITH_EPS = {"div": div, "log": log, "sqrt": sqrt}


def apply(op, *inputs, groups=32, eps=1e-5):
    """One primitive on what broadcasts to ``(N, C, H, W)``; so does the result.

    Args:
        op: a name of :data:`evonorm_plugins.layers.graph.operations.OPERATIONS`.

    Raises:
        KeyError: there is no such primitive.
    """
    if op in AGGREGATIONS:
        kind, over = AGGREGATIONS[op]
        return aggregation(kind, moment(kind, over, *inputs, groups), eps)
    if op in _WITH_EPS:
        return _WITH_EPS[op](*inputs, eps)
    return _ELEMENTWISE[op](*inputs)
