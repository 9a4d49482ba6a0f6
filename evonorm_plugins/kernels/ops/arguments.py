"""What a kernel is given: checked, for it would read what lies beside a tensor that is too small.

``x`` and what is like it dense in one memory format, parameters and statistics contiguous and in
float32. A function raises ValueError where an argument is not what the function is named for.
"""

import math

import torch

from evonorm_plugins.kernels import backend
from evonorm_plugins.kernels.library import DTYPES, Unfit

# Looked up once, for these functions run with every call.
FLOAT32 = torch.float32
_STRIDED = torch.strided


def sizes(x):
    """``N, C, H, W`` of an x that the kernels take."""
    shape = None if x is None else x.shape
    if shape is None or len(shape) != 4:
        raise ValueError(f"x of {_shape(x)} is not (N, C, H, W)")
    if x.dtype not in DTYPES or x.layout is not _STRIDED:
        dtypes = ", ".join(map(str, DTYPES))
        raise ValueError(f"x is {x.dtype} and {x.layout}; the kernels take strided {dtypes}")
    return shape


def require_kind(kind, kinds, v):
    """Raise Unfit where :func:`check_kind` raises another error."""
    if kinds.get(kind) is not (v is not None):
        raise Unfit(f"kind={kind!r} is none, or has a v where none is given")


def check_kind(kind, kinds, v, name="kind"):
    """``kind`` is one of ``kinds``, whose values say whether it has a v."""
    if kind not in kinds:
        raise ValueError(f"{name}={kind!r} is not one of {', '.join(map(repr, kinds))}")
    if v is None and kinds[kind]:
        raise ValueError(f"v is None, but {name}={kind!r} has one for each channel")
    if v is not None and not kinds[kind]:
        raise ValueError(f"v is given, but {name}={kind!r} has none")


def check_eps(eps):
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps={eps!r} is not a finite number of at least 0")


def memory_format(x):
    """The one of what the kernels make like ``x``."""
    last = torch.channels_last
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


def dense(x):
    """``x`` in a dense memory format."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if x.is_contiguous() else x.contiguous(memory_format=memory_format(x))


def dense_pair(x, dy):
    """``x`` and ``dy``, a gradient of what is like ``x``, in the same memory format."""
    if dy is None or dy.shape != x.shape or dy.dtype != x.dtype:
        given = dy if dy is None else f"{dy.dtype} of {_shape(dy)}"
        raise ValueError(f"dy, {given}, is not like x, {x.dtype} of {_shape(x)}")
    if dy.device != x.device or dy.layout is not _STRIDED:
        raise _misplaced("dy", dy, x)
    if dy.is_neg():
        dy = dy.resolve_neg()
    x = dense(x)
    if not x.is_contiguous():
        return x, dy.contiguous(memory_format=torch.channels_last)
    return x, dy if dy.is_contiguous() else dy.contiguous()


def gamma(weight, x, samples, channels):
    """``(C,)``, or ``(N, C)`` with one for each sample."""
    shape = None if weight is None else weight.shape
    if shape != (channels,) and shape != (samples, channels):
        allowed = f"({channels},) or ({samples}, {channels})"
        raise ValueError(f"weight of {_shape(weight)} is not {allowed}, for x of {_shape(x)}")
    return _float32("weight", weight, x)


def gamma_and_beta(weight, bias, x, samples, channels):
    if weight is None or bias is None or bias.shape != weight.shape:
        raise ValueError(
            f"weight of {_shape(weight)} and bias of {_shape(bias)} are not both "
            f"({channels},) or ({samples}, {channels}), for x of {_shape(x)}"
        )
    return gamma(weight, x, samples, channels), _float32("bias", bias, x)


def per_channel(name, p, x, channels):
    """A parameter or statistic ``(C,)``."""
    if p is None or p.shape != (channels,):
        raise ValueError(f"{name} of {_shape(p)} is not ({channels},), for x of {_shape(x)}")
    return _float32(name, p, x)


def per_sample(name, t, x, samples, channels):
    """A statistic ``(N, C)``."""
    if t is None or t.shape != (samples, channels):
        wanted = f"({samples}, {channels})"
        raise ValueError(f"{name} of {_shape(t)} is not {wanted}, for x of {_shape(x)}")
    return _statistic(name, t, x)


def check_groups(groups, channels):
    if not 1 <= groups <= channels or channels % groups:
        raise ValueError(f"groups={groups} does not divide the {channels} channels of x")


def of_groups(name, t, x, samples, channels):
    """Two statistics of groups that divide the channels, ``(2, N, groups)``."""
    shape = () if t is None else t.shape
    fits = len(shape) == 3 and shape[:2] == (2, samples) and 1 <= shape[2] <= channels
    if not fits or channels % shape[2]:
        wanted = f"(2, {samples}, groups) with groups that divide the {channels} channels of x"
        raise ValueError(f"{name} of {_shape(t)} is not {wanted}")
    return _statistic(name, t, x)


def of_batch(name, t, x, channels):
    """Statistics of the batch, ``(3, C)``, or ``(2, C)`` where they were given."""
    if t is None or t.shape not in ((3, channels), (2, channels)):
        wanted = f"(3, {channels}) or (2, {channels}), for x of {_shape(x)}"
        raise ValueError(f"{name} of {_shape(t)} is not {wanted}")
    return _statistic(name, t, x)


def module_for(impl, x):
    """The module of an implementation, one that computes on the device of ``x``."""
    module = backend(impl)
    if not module.computes_on(x):
        raise ValueError(f"impl={impl!r} cannot compute on {x.device}")
    return module


def _statistic(name, t, x):
    if t.dtype is not FLOAT32:
        raise ValueError(f"{name} is {t.dtype}, not {FLOAT32}")
    return _float32(name, t, x)


def _float32(name, p, x):
    if p.device != x.device or p.layout is not _STRIDED:
        raise _misplaced(name, p, x)
    if p.dtype is not FLOAT32:
        if not p.is_floating_point():
            raise ValueError(f"{name} is {p.dtype}, not of a floating-point dtype")
        p = p.float()
    if p.is_neg():
        p = p.resolve_neg()
    return p if p.is_contiguous() else p.contiguous()


def _misplaced(name, t, x):
    return ValueError(f"{name} is {t.layout} on {t.device}, x {x.layout} on {x.device}")


def _shape(t):
    return None if t is None else tuple(t.shape)
