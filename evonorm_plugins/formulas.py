"""Every norm-activation formula of the paper in plain torch: the oracle.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Table 2 (B series) and Table 3 (S series). Whatever is faster must agree with this file.
:mod:`evonorm_plugins.functional` says what the arguments are.
"""

import torch

from evonorm_plugins.modes import compute_dtype, is_captured
from evonorm_plugins.planes import of_planes


def effective_groups(num_channels: int, groups: int) -> int:
    """Largest number not above ``groups`` that divides ``num_channels``, as in the authors' code.

    48 channels with 32 groups give 24.
    """
    groups = min(groups, num_channels)
    while num_channels % groups:
        groups -= 1
    return groups


def channels(p, dtype):
    """``(C,)``, or ``(N, C)`` with one for each sample, to what broadcasts to ``(N, C, H, W)``."""
    return p.to(dtype)[..., None, None]


def gradients(formula, tensors, dy, needed):
    """Gradients of ``formula(*tensors)``, None where not needed; for a backward pass.

    They can be differentiated again where the backward pass is recorded. A tensor may be None.
    """
    create_graph = torch.is_grad_enabled()
    if create_graph:
        # Connected to what produced the inputs, for gradients of higher order; views, for the
        # gradient of x here must not pass through another input that was computed from x.
        tensors = [None if t is None else t.view_as(t) for t in tensors]
    else:
        tensors = [
            None if t is None else t.detach().requires_grad_(n)
            for t, n in zip(tensors, needed, strict=True)
        ]
    with torch.enable_grad():
        y = formula(*tensors)
    wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    return [next(found) if n else None for n in needed]


def _var(x, dim):
    # var() of an empty batch would warn. A graph captured from one must hold for others.
    return x.var(dim, correction=0) if is_captured() or x.numel() else x.mean(dim)


def _per_channel(x, channels):
    """``(N, G)`` of groups to ``(N, C, 1, 1)``, broadcastable to their elements."""
    return x.repeat_interleave(channels // x.shape[1], 1)[:, :, None, None]


def _group_var(x, groups):
    c = x.shape[1]
    return _per_channel(_var(x.unflatten(1, (effective_groups(c, groups), -1)), (2, 3, 4)), c)


def _group_mean_square(x, groups):
    c = x.shape[1]
    mean = _instance_mean_square(x)
    if groups == c:
        return mean
    mean = mean.unflatten(1, (effective_groups(c, groups), -1)).mean(2)
    return _per_channel(mean[:, :, 0, 0], c)


def _instance_var(x):
    return _var(x, (2, 3))[:, :, None, None]


def _instance_mean_square(x):
    # Not mean(), whose gradient is contiguous where x is channels_last.
    return x.square().sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


def _in_compute_dtype(formula):
    """Run a formula in the dtype of the statistics, return in that of ``x``, then gamma, beta."""

    @of_planes
    def wrapped(x, weight, bias, *params, **options):
        compute = compute_dtype(x)
        y = formula(x.to(compute), *(channels(p, compute) for p in params), **options)
        y = torch.addcmul(channels(bias, compute), y, channels(weight, compute))
        return y.to(x.dtype)

    return wrapped


@_in_compute_dtype
def s0(x, v, groups, eps):
    return x * torch.sigmoid(v * x) * (_group_var(x, groups) + eps).rsqrt()


@_in_compute_dtype
def s1(x, groups, eps):
    return torch.nn.functional.silu(x) * (_group_var(x, groups) + eps).rsqrt()


@_in_compute_dtype
def s2(x, groups, eps):
    return torch.nn.functional.silu(x) * (_group_mean_square(x, groups) + eps).rsqrt()


@_in_compute_dtype
def s2v(x, v, groups, eps):
    # No layer of the paper's: S2 with the v of S0.
    return x * torch.sigmoid(v * x) * (_group_mean_square(x, groups) + eps).rsqrt()


@_in_compute_dtype
def b0(x, batch_var, v, eps):
    return x / torch.maximum((batch_var + eps).sqrt(), v * x + (_instance_var(x) + eps).sqrt())


@_in_compute_dtype
def b1(x, batch_var, eps):
    rms = (_instance_mean_square(x) + eps).sqrt()
    return x / torch.maximum((batch_var + eps).sqrt(), (x + 1) * rms)


@_in_compute_dtype
def b2(x, batch_var, eps):
    rms = (_instance_mean_square(x) + eps).sqrt()
    return x / torch.maximum((batch_var + eps).sqrt(), rms - x)


@_in_compute_dtype
def affine(x):
    return x


@_in_compute_dtype
def pixelnorm(x, eps):
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def pixelnorm_relu(x, weight, bias, eps):
    return torch.relu(pixelnorm(x, weight, bias, eps=eps))


@of_planes
def group(x, weight, bias, v=None, *, statistics, act, groups, eps):
    """A norm over groups of channels, then an activation; see :func:`functional.group_norm_act`."""
    z = _GROUP_NORMS[statistics](x.to(compute_dtype(x)), weight, bias, groups=groups, eps=eps)
    return _ACTIVATIONS[act](z, v).to(x.dtype)


@of_planes
def batch_norm(x, weight, bias, v=None, *, statistics=None, act, eps):
    """Batch normalization, then an activation; see :func:`functional.batch_norm_act`.

    ``statistics``: mean and 1 / std of every channel, two of ``(C,)``; None takes those of x.
    """
    compute = compute_dtype(x)
    if statistics is None:
        z = torch.batch_norm(x.to(compute), None, None, None, None, True, 0, eps, False)
    else:
        mean, rstd = (channels(t, compute) for t in statistics)
        z = (x.to(compute) - mean) * rstd
    return _ACTIVATIONS[act](affine(z, weight, bias), v).to(x.dtype)


def _group_norm(x, weight, bias, groups, eps):
    if weight.dim() == 1:
        return torch.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return affine(torch.group_norm(x, groups, eps=eps), weight, bias)


@_in_compute_dtype
def _over_group_std(x, groups, eps):
    return x * (_group_var(x, groups) + eps).rsqrt()


@_in_compute_dtype
def _over_group_rms(x, groups, eps):
    return x * (_group_mean_square(x, groups) + eps).rsqrt()


@of_planes
def tlu(x, threshold):
    compute = compute_dtype(x)
    return torch.maximum(x.to(compute), channels(threshold, compute)).to(x.dtype)


@of_planes
def swish(x, v):
    compute = compute_dtype(x)
    z = x.to(compute)
    return (z * torch.sigmoid(channels(v, compute) * z)).to(x.dtype)


_GROUP_NORMS = {"norm": _group_norm, "std": _over_group_std, "rms": _over_group_rms}
_ACTIVATIONS = {
    "none": lambda z, v: z,
    "relu": lambda z, v: torch.relu(z),
    "silu": lambda z, v: torch.nn.functional.silu(z),
    "swish": swish,
    "tlu": tlu,
}


@_in_compute_dtype
def random(x, eps):
    # z > 0, so sign(z) sqrt|z| is sqrt(z); the layer is constant over space.
    z = (_instance_var(torch.sigmoid(x)) + eps).sqrt()
    return z.sqrt() * torch.ones_like(x)


@_in_compute_dtype
def random_rej(x):
    return torch.tanh(torch.maximum(x, torch.tanh(x)))


@_in_compute_dtype
def rs_rej(x, batch_mean_square, eps):
    return torch.relu(x) * (batch_mean_square + eps).rsqrt()
