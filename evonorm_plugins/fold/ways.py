"""Operations through which a scale and a shift of every channel pass unchanged."""

import operator
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

# In inference.
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Way(NamedTuple):
    """What passes through an operation on ``(N, C, ...)``.

    Fields:
        shift: whether a shift does, besides a scale.
        signed: whether a negative scale does, besides a positive one.
        flattens: whether the result is ``(N, C * P)`` or ``(N, C)``.
        any_shape: whether all this holds for ``(N, C * P)`` too.
        dims: number of dimensions that it takes; None for any.
    """

    shift: bool = True
    signed: bool = True
    flattens: bool = False
    any_shape: bool = False
    dims: int | None = None


_SAME = Way(any_shape=True)
_PRODUCT = Way(shift=False, any_shape=True)
_FLAT = Way(flattens=True)

_ADAPTIVE_AVERAGES = {nn.AdaptiveAvgPool1d: 3, nn.AdaptiveAvgPool2d: 4, nn.AdaptiveAvgPool3d: 5}
_AVERAGES = {nn.AvgPool1d: 3, nn.AvgPool2d: 4, nn.AvgPool3d: 5}
_MAXIMA = {
    **{nn.MaxPool1d: 3, nn.MaxPool2d: 4, nn.MaxPool3d: 5},
    **{nn.AdaptiveMaxPool1d: 3, nn.AdaptiveMaxPool2d: 4, nn.AdaptiveMaxPool3d: 5},
}
_ZERO_PADS = {nn.ZeroPad1d: 3, nn.ZeroPad2d: 4, nn.ZeroPad3d: 5}
_ADAPTIVE_AVERAGE_FUNCTIONS = {
    F.adaptive_avg_pool1d: 3,
    F.adaptive_avg_pool2d: 4,
    F.adaptive_avg_pool3d: 5,
}
_AVERAGE_FUNCTIONS = {F.avg_pool1d: 3, F.avg_pool2d: 4, F.avg_pool3d: 5}


def way_through(user, node, module, dims=None):
    """The :class:`Way` of ``node`` through ``user``, which calls ``module`` or None; else None.

    Args:
        dims: number of dimensions of what ``node`` writes; None where that is not known, and then
            the ``dims`` of the way are those that it is right for.
    """
    if user.op == "call_module":
        way = _through_module(module)
    elif user.op == "call_method":
        way = _through_method(user, node)
    else:
        way = _through_function(user, node) if user.op == "call_function" else None
    return None if way is not None and dims is not None and way.dims not in (None, dims) else way


def is_shape_query(node):
    """Whether ``node`` asks for the shape or kind of a tensor, not for its numbers."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    names = ("shape", "ndim", "dtype", "device")
    return node.target is getattr and node.args[1] in names


def _through_module(module):
    kind = type(module)
    if kind in IDENTITIES:
        return _SAME
    if kind in _ADAPTIVE_AVERAGES:
        return Way(dims=_ADAPTIVE_AVERAGES[kind])
    if kind in _AVERAGES:
        options = module.count_include_pad, getattr(module, "divisor_override", None)
        return _average(_AVERAGES[kind], module.padding, *options)
    if kind in _MAXIMA:
        return Way(signed=False, dims=_MAXIMA[kind])
    if kind in _ZERO_PADS:
        return Way(shift=False, dims=_ZERO_PADS[kind])
    if kind is nn.Flatten:
        return _flatten(module.start_dim, module.end_dim)
    return None


def _through_method(user, node):
    if user.args[0] is not node:
        return None
    _, *rest = user.args
    if user.target == "mean":
        return _mean(*rest, **user.kwargs)
    if user.target == "flatten":
        return _flatten(*rest, **user.kwargs)
    if user.target in ("view", "reshape") and len(rest) == 2:
        return _FLAT if _is_batch_size(rest[0], node) and rest[1] == -1 else None
    return None


def _through_function(user, node):
    if user.target in (operator.mul, torch.mul) and len(user.args) == 2:
        # By itself it would be the square.
        return None if user.args[0] is user.args[1] else _PRODUCT
    if not user.args or user.args[0] is not node:
        return None
    _, *rest = user.args
    if user.target in _ADAPTIVE_AVERAGE_FUNCTIONS:
        return Way(dims=_ADAPTIVE_AVERAGE_FUNCTIONS[user.target])
    if user.target in _AVERAGE_FUNCTIONS:
        return _functional_average(_AVERAGE_FUNCTIONS[user.target], *rest, **user.kwargs)
    if user.target is torch.mean:
        return _mean(*rest, **user.kwargs)
    if user.target is torch.flatten:
        return _flatten(*rest, **user.kwargs)
    if user.target is F.dropout:
        return _dropout(*rest, **user.kwargs)
    return None


def _dropout(p=0.5, training=True, inplace=False):
    return None if training else _SAME


def _functional_average(
    dims,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    return _average(dims, padding, count_include_pad, divisor_override)


def _average(dims, padding, count_include_pad, divisor_override):
    pads = any(padding) if isinstance(padding, tuple | list) else padding
    exact = divisor_override is None and not (pads and count_include_pad)
    return Way(shift=exact, dims=dims)


def _mean(dim=None, keepdim=False, **others):
    over = dim if isinstance(dim, tuple | list) else [dim]
    if others or not all(isinstance(d, int) for d in over):
        return None
    dims = len(over) + 2  # if it is over all of space
    if {d % dims for d in over} != set(range(2, dims)):
        return None
    return Way(flattens=not keepdim, dims=dims)


def _flatten(start_dim=0, end_dim=-1):
    if start_dim != 1 or end_dim < -1 or end_dim in (0, 1):
        return None
    return Way(flattens=True, dims=None if end_dim == -1 else end_dim + 1)


def _is_batch_size(value, node):
    """Whether ``value`` is ``node.size(0)``, ``node.size()[0]`` or ``node.shape[0]``."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method":
        return value.target == "size" and value.args == (node, 0)
    if value.target is not operator.getitem or value.args[1] != 0:
        return False
    shape = value.args[0]
    if shape.op == "call_method":
        return shape.target == "size" and shape.args == (node,)
    return shape.target is getattr and shape.args == (node, "shape")
