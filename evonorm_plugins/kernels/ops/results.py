"""Results of the operators: what is made like their arguments, and what an empty x gives."""

import torch

from evonorm_plugins.kernels.ops.arguments import FLOAT32, memory_format


def zeros(x, number, *shape):
    return [torch.zeros(shape, device=x.device) for _ in range(number)]


def no_gradients(weight, v):
    """Of gamma, beta and v, None where there is none, where x is empty."""
    dv = None if v is None else torch.zeros_like(v)
    return torch.zeros_like(weight), torch.zeros_like(weight), dv


def any_bias(weight):
    """What stands for beta, on whose value no gradient depends, in a formula to differentiate."""
    return torch.zeros_like(weight, requires_grad=True)


def as_given(dweight, dbias, dv, weight, v):
    """Gradients in the dtype of the parameters."""
    if weight.dtype is not FLOAT32:
        dweight, dbias = dweight.to(weight.dtype), dbias.to(weight.dtype)
    if v is not None and v.dtype is not FLOAT32:
        dv = dv.to(v.dtype)
    return dweight, dbias, dv


def nothing(x):
    """What stands for None, which an operator cannot return."""
    return x.new_empty(0)


def fake_like(x):
    return torch.empty_like(x, memory_format=memory_format(x))


def fake_gradients(x, weight, v):
    """Of x, gamma, beta and v."""
    dweight, dbias = (
        torch.empty_like(weight, memory_format=torch.contiguous_format) for _ in range(2)
    )
    dv = nothing(x) if v is None else torch.empty_like(v)
    return fake_like(x), dweight, dbias, dv
