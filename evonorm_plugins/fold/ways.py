"""Operations through which a scale and a shift of every channel pass unchanged."""

import operator
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

# In inference.
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Way(NamedTuple):
    """What passes through an operation on ``(N, C, H, W)``.

    Fields:
        shift: whether a shift does, besides a scale.
        signed: whether a negative scale does, besides a positive one.
        flattens: whether the result is ``(N, C * H * W)`` or ``(N, C)``.
        any_shape: whether all this holds for ``(N, C * H * W)`` too.
    """

    shift: bool = True
    signed: bool = True
    flattens: bool = False
    any_shape: bool = False


_SAME = Way(any_shape=True)
_PRODUCT = Way(shift=False, any_shape=True)
_AVERAGE, _MAXIMUM, _PAD, _FLAT = Way(), Way(signed=False), Way(shift=False), Way(flattens=True)


def way_through(user, node, module):
    """The :class:`Way` of ``node`` through ``user``, which calls ``module`` or None; else None."""
    if user.op == "call_module":
        return _through_module(module)
    if user.op == "call_method":
        return _through_method(user, node)
    if user.op == "call_function":
        return _through_function(user, node)
    return None


def is_shape_query(node):
    """Whether ``node`` asks for the shape or kind of a tensor, not for its numbers."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    names = ("shape", "ndim", "dtype", "device")
    return node.target is getattr and node.args[1] in names


def _through_module(module):
    if type(module) in IDENTITIES:
        return _SAME
    if type(module) is nn.AdaptiveAvgPool2d:
        return _AVERAGE
    if type(module) is nn.AvgPool2d:
        return _average(module.padding, module.count_include_pad, module.divisor_override)
    if type(module) in (nn.MaxPool2d, nn.AdaptiveMaxPool2d):
        return _MAXIMUM
    if type(module) is nn.ZeroPad2d:
        return _PAD
    if type(module) is nn.Flatten:
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
    if user.target is F.adaptive_avg_pool2d:
        return _AVERAGE
    if user.target is F.avg_pool2d:
        return _functional_average(*rest, **user.kwargs)
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
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    return _average(padding, count_include_pad, divisor_override)


def _average(padding, count_include_pad, divisor_override):
    pads = any(padding) if isinstance(padding, tuple | list) else padding
    return Way(shift=divisor_override is None and not (pads and count_include_pad))


def _mean(dim=None, keepdim=False, **others):
    dims = dim if isinstance(dim, tuple | list) else [dim]
    # Only what has four dimensions comes here.
    if others or not all(isinstance(d, int) for d in dims) or {d % 4 for d in dims} != {2, 3}:
        return None
    return _AVERAGE if keepdim else _FLAT


def _flatten(start_dim=0, end_dim=-1):
    return _FLAT if start_dim == 1 and end_dim in (-1, 3) else None


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
