"""The CPU kernels in ``csrc``: what the C functions take and give, as tensors.

Each function takes an ``x`` of ``(N, C, H, W)`` that is not empty and dense in contiguous or
channels_last order, ``dy`` with the dtype and strides of ``x``, and float32 contiguous parameters
and statistics: ``weight`` and ``bias`` ``(C,)`` or ``(N, C)``, ``v`` ``(C,)`` or None, which stands
for ones. Statistics and gradients of parameters are returned in float32.

A new pair of kernels: a C file in ``csrc`` with its two functions of a ``problem``, as affine.c
(named in FORMULAS of setup.py); for each function a line of ENTRIES in csrc/module.c, with the
fields of ``problem`` that Python gives, in order; both ``INTERFACE`` raised; and here a function
that makes the results and calls ``library.NAME`` with just these arguments: tensors, Nones,
numbers. An entry checks every tensor that it reads and raises :class:`Unfit` before anything is
computed, so an operator tries it first and makes its arguments fit where it was refused.
"""

import torch

from evonorm_plugins.kernels.library import INSTRUCTION_SETS, Unfit, library

__all__ = ["INSTRUCTION_SETS", "Unfit"]

_KINDS = {"b0": 0, "b1": 1, "b2": 2, "rs_rej": 3}
_ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2, "swish": 3, "tlu": 4}
_threads = torch.get_num_threads


def computes_on(x):
    """Whether the kernels can be given ``x`` on its device."""
    return x.is_cpu


def missing():
    """Why the kernels cannot run on this machine, or None."""
    return library if isinstance(library, str) else None


def instruction_set():
    """The one of ``INSTRUCTION_SETS`` in use."""
    return INSTRUCTION_SETS[library.level()]


def use_instruction_set(name):
    """Use ``name`` of ``INSTRUCTION_SETS``, or a lesser one where the processor lacks it."""
    library.choose(INSTRUCTION_SETS.index(name))


def has_openmp():
    """Whether the library was built with OpenMP: without it, it uses one thread."""
    return bool(library.HAS_OPENMP)


def _gradients(weight, v):
    """Of weight, bias and v."""
    dv = None if v is None else torch.empty_like(v)
    return torch.empty_like(weight), torch.empty_like(weight), dv


def sample_forward(x, weight, bias, v, groups, eps, centred):
    """The S series: ``(y, mean_rstd)``, the latter ``(2, N, groups)``; groups divide C.

    ``centred=False`` takes the mean of squares for the variance, and 0 for the mean.
    """
    samples, channels, _, _ = x.shape
    # Numbers one by one: a tuple of them takes a third of a microsecond more.
    # Of a number that is refused there, no more memory than of one that is not.
    kept = max(0, min(groups, channels))
    y, mean_rstd = torch.empty_like(x), weight.new_empty(2, samples, kept)
    library.sample_forward(_threads(), x, weight, v, bias, groups, eps, centred, y, mean_rstd)
    return y, mean_rstd


def sample_backward(dy, x, weight, v, mean_rstd, centred):
    """Gradients of x, weight, bias and v (None where there is no v)."""
    dx = torch.empty_like(x)
    dweight, dbias, dv = _gradients(weight, v)
    library.sample_backward(
        _threads(), x, weight, v, mean_rstd, centred, dy, dx, dweight, dbias, dv
    )
    return dx, dweight, dbias, dv


def group_forward(x, weight, bias, v, statistics, act, groups, eps):
    """Group norms with an activation: ``(y, mean_rstd)``, the latter ``(2, N, groups)``.

    ``statistics`` and ``act`` as in :func:`evonorm_plugins.functional.group_norm_act`; groups
    divide C. v is None in the activations that have none.
    """
    kept = max(0, min(groups, x.shape[1]))
    y, mean_rstd = torch.empty_like(x), weight.new_empty(2, x.shape[0], kept)
    kind = _ACTIVATIONS[act], statistics != "rms", statistics == "norm"
    library.group_forward(_threads(), x, weight, v, bias, *kind, groups, eps, y, mean_rstd)
    return y, mean_rstd


def group_backward(dy, x, weight, bias, v, mean_rstd, statistics, act):
    """Gradients of x, weight, bias and v (None where there is no v)."""
    dx = torch.empty_like(x)
    parameters = _gradients(weight, v)
    kind = _ACTIVATIONS[act], statistics != "rms", statistics == "norm"
    library.group_backward(*(_threads(), x, weight, v, bias, *kind, mean_rstd, dy, dx), *parameters)
    return dx, *parameters


def batch_norm_forward(x, weight, bias, v, mean, var, act, eps):
    """Batch norm with an activation: ``(y, statistics)``; ``act`` and v as in a group norm.

    ``mean`` and ``var`` ``(C,)`` None: those of x are used. ``statistics`` ``(3, C)``: mean,
    1 / std and the unbiased variance; the first two of them, ``(2, C)``, where they are given.
    """
    y, statistics = torch.empty_like(x), weight.new_empty(3 if mean is None else 2, x.shape[1])
    library.batch_norm_forward(
        _threads(), x, weight, v, bias, _ACTIVATIONS[act], eps, mean, var, y, statistics
    )
    return y, statistics


def batch_norm_backward(dy, x, weight, bias, v, statistics, act):
    """Gradients of x, weight, bias and v (None where there is no v)."""
    dx = torch.empty_like(x)
    parameters = _gradients(weight, v)
    kind = _ACTIVATIONS[act]
    library.batch_norm_backward(
        *(_threads(), x, weight, v, bias, kind, statistics, dy, dx), *parameters
    )
    return dx, *parameters


def batch_moments(x, centred=True):
    """Mean and biased variance of every sample's channels, ``(N, C)`` each, float64.

    ``centred=False`` takes the mean of squares for the variance, and 0 for the mean.
    """
    n, c, h, w = x.shape
    moments = x.new_empty((2, n, c), dtype=torch.float64)
    library.batch_moments(_threads(), x, centred, moments)
    return moments[0], moments[1] / (h * w)


def batch_apply(x, weight, bias, v, mean, var, batch_var, kind, eps):
    """The B series with given statistics: y. RS + rej has no mean and var: None."""
    y = torch.empty_like(x)
    given = _KINDS[kind], eps, mean, var, None, batch_var
    library.batch_apply(_threads(), x, weight, v, *given, bias, y)
    return y


def batch_forward(x, weight, bias, v, batch_var, kind, eps):
    """The B series: ``(y, mean, var, batch_mean, batch_var)``.

    mean and var ``(N, C)`` are those of every sample's channels. ``batch_var`` ``(C,)`` None: that
    of x is used and returned with its mean. Otherwise the last two results are empty, and for B1
    and B2 var is the mean of squares and the mean 0, which is right for infinite numbers too.
    RS + rej has no mean and var of samples: None; that of the batch is the mean of squares.
    """
    own = batch_var is None
    samples, channels, _, _ = x.shape
    new_mean = weight.new_empty(channels if own else 0)
    new_var = torch.empty_like(new_mean)
    if kind == "rs_rej":
        mean = var = None
        if not own:
            y = batch_apply(x, weight, bias, v, mean, var, batch_var, kind, eps)
            return y, mean, var, new_mean, new_var
    else:
        mean = weight.new_empty(samples, channels)
        var = torch.empty_like(mean)
    y = torch.empty_like(x)
    used = (new_mean, new_var) if own else (None, batch_var)
    library.batch_forward(
        *(_threads(), x, weight, v, _KINDS[kind], eps, mean, var, *used),
        *(bias, y, kind == "b0" or (own and kind != "rs_rej"), own),
    )
    return y, mean, var, new_mean, new_var


def batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps):
    """Gradients of x, weight, bias, v (None but in B0) and batch_var.

    With a ``batch_mean``, ``batch_var`` is that of x, the gradient of x holds its part, and its own
    is None.
    """
    dx = torch.empty_like(x)
    dbatch_var = torch.empty_like(batch_var) if batch_mean is None else None
    parameters = _gradients(weight, v)
    library.batch_backward(
        *(_threads(), x, weight, v, _KINDS[kind], eps, mean, var, batch_mean, batch_var),
        *(dy, dx, *parameters, dbatch_var),
    )
    return dx, *parameters, dbatch_var


def batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps):
    """Gradients of weight, bias, v, every sample's own std or rms ``(N, C)``, and batch_var.

    That of what a formula does not have is None.
    """
    dstd = None if mean is None else torch.empty_like(mean)
    dbatch_var = torch.empty_like(batch_var)
    parameters = _gradients(weight, v)
    library.batch_reduce(
        *(_threads(), x, weight, v, _KINDS[kind], eps, mean, var, None, batch_var),
        *(dy, *parameters, dstd, dbatch_var),
    )
    return *parameters, dstd, dbatch_var


def batch_input_gradient(
    dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
):
    """Gradient of x from those of the statistics; ``count``: elements behind ``batch_var``."""
    dx = torch.empty_like(x)
    library.batch_input_gradient(
        *(_threads(), x, weight, v, _KINDS[kind], eps, mean, var, batch_mean, batch_var),
        *(dy, dx, dstd, dbatch_var, count),
    )
    return dx


def affine_forward(x, weight, bias):
    """``x * weight + bias``."""
    y = torch.empty_like(x)
    library.affine_forward(_threads(), x, weight, bias, y)
    return y


def affine_backward(dy, x, weight):
    """Gradients of x, weight and bias."""
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    library.affine_backward(_threads(), x, weight, dy, dx, dweight, dbias)
    return dx, dweight, dbias


def move_moments(mean, var, batches, statistics, momentum):
    """The averages of :func:`batch_norm_forward`'s mean and unbiased variance moved, in place.

    As torch does it: they are lost to what is not finite. ``batches``, int64, is one more then.
    """
    library.move_moments(mean, var, batches, statistics, momentum)


def move_average(average, value, momentum):
    """``average`` ``(C,)`` moved by the share ``momentum`` towards ``value``, where that is finite.

    In place; autograd is told by the caller.
    """
    library.move_average(average, value, momentum)
