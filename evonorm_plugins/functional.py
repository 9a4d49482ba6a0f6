"""Every norm-activation formula of the paper in plain torch.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Table 2 (B series) and Table 3 (S series). This file is the oracle: whatever is faster must agree
with it.

Shapes: ``x`` is ``(N, C, H, W)``; ``weight`` (gamma), ``bias`` (beta) and ``v`` are ``(C,)``.
Every variance is biased and centred, eps is added under the square root, statistics are computed in
float32 (float64 for float64 input), and the result has the dtype and memory format of ``x``.
Only ``x`` and per-channel or per-group statistics are kept for the backward pass, so a caller may
overwrite the result in place. All gradients can be differentiated again.
"""

import torch
import torch.distributed as dist

IMPLEMENTATIONS = ("auto", "torch")


def effective_groups(num_channels, groups):
    """Largest number not above ``groups`` that divides ``num_channels``, as in the authors' code.

    48 channels with 32 groups give 24.
    """
    groups = min(groups, num_channels)
    while num_channels % groups:
        groups -= 1
    return groups


def evonorm_s0(x, weight, bias, v, *, groups=32, eps=1e-5, impl="auto"):
    """EvoNorm-S0: ``x * sigmoid(v * x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3)."""
    return _apply(_s0, impl, x, weight, bias, v, groups=groups, eps=eps)


def evonorm_s1(x, weight, bias, *, groups=32, eps=1e-5, impl="auto"):
    """EvoNorm-S1: ``x * sigmoid(x) / std_{w,h,c/g}(x) * gamma + beta`` (Table 3)."""
    return _apply(_s1, impl, x, weight, bias, groups=groups, eps=eps)


def evonorm_s2(x, weight, bias, *, groups=32, eps=1e-5, impl="auto"):
    """EvoNorm-S2: ``x * sigmoid(x) / rms_{w,h,c/g}(x) * gamma + beta`` (Table 3)."""
    return _apply(_s2, impl, x, weight, bias, groups=groups, eps=eps)


def evonorm_b0(x, weight, bias, v, batch_var, *, eps=1e-5, impl="auto"):
    """EvoNorm-B0: ``x / max(std_{b,w,h}(x), v * x + std_{w,h}(x)) * gamma + beta`` (Table 2).

    ``batch_var`` ``(C,)`` is the variance under the first square root: :func:`batch_variance` in
    training, the moving variance in inference.
    """
    return _apply(_b0, impl, x, weight, bias, batch_var, v, eps=eps)


def evonorm_b1(x, weight, bias, batch_var, *, eps=1e-5, impl="auto"):
    """EvoNorm-B1: ``x / max(std_{b,w,h}(x), (x + 1) * rms_{w,h}(x)) * gamma + beta`` (Table 2)."""
    return _apply(_b1, impl, x, weight, bias, batch_var, eps=eps)


def evonorm_b2(x, weight, bias, batch_var, *, eps=1e-5, impl="auto"):
    """EvoNorm-B2: ``x / max(std_{b,w,h}(x), rms_{w,h}(x) - x) * gamma + beta`` (Table 2)."""
    return _apply(_b2, impl, x, weight, bias, batch_var, eps=eps)


def channel_affine(x, weight, bias):
    """``gamma * x + beta`` per channel: what the paper puts where no activation follows."""
    compute = _compute_dtype(x)
    if compute == x.dtype:
        return torch.addcmul(_channels(bias, compute), x, _channels(weight, compute))
    return _apply(_affine, "auto", x, weight, bias)


def pixelnorm_relu(x, weight, bias, *, eps=1e-8):
    """PixelNorm-ReLU: ``max(x / rms_c(x) * gamma + beta, 0)``, rms over the channels of a pixel.

    Source: Karras et al. (arXiv 1710.10196), Section 4.2; a row of the paper's Table 5.
    """
    return _apply(_pixelnorm_relu, "auto", x, weight, bias, eps=eps)


def pixelnorm(x, weight, bias, *, eps=1e-8):
    """:func:`pixelnorm_relu` without the ReLU."""
    return _apply(_pixelnorm, "auto", x, weight, bias, eps=eps)


def frn(x, weight, bias, threshold=None, *, eps=1e-6):
    """Filter response normalization: ``max(x / rms_{w,h}(x) * gamma + beta, threshold)``.

    ``threshold`` ``(C,)`` is the learnable bound of the TLU; None leaves the TLU out.
    Source: Singh, Krishnan (arXiv 1911.09737), equations 1 to 4; a row of the paper's Table 3.
    """
    if threshold is None:
        return _apply(_frn, "auto", x, weight, bias, eps=eps)
    return _apply(_frn_tlu, "auto", x, weight, bias, threshold, eps=eps)


def tlu(x, threshold):
    """``max(x, threshold)`` with a threshold ``(C,)`` per channel."""
    return _apply(_tlu, "auto", x, threshold)


def swish(x, v):
    """``x * sigmoid(v * x)`` with v ``(C,)`` per channel."""
    return _apply(_swish, "auto", x, v)


def random_layer(x, weight, bias, *, eps=1e-5):
    """Row "Random" of Table 3: ``sign(z) sqrt|z|``, ``z = std_{w,h}(sigmoid(x))``."""
    return _apply(_random, "auto", x, weight, bias, eps=eps)


def random_rej_layer(x, weight, bias):
    """Row "Random + rej" of Table 3: ``tanh(max(x, tanh(x)))``."""
    return _apply(_random_rej, "auto", x, weight, bias)


def rs_rej_layer(x, weight, bias, batch_mean_square, *, eps=1e-5):
    """Row "RS + rej" of Table 2: ``max(x, 0) / rms_{b,w,h}(x)``; the last argument is rms^2."""
    return _apply(_rs_rej, "auto", x, weight, bias, batch_mean_square, eps=eps)


def batch_variance(x, *, centred=True, group=None):
    """Biased variance of every channel over batch and space, ``(C,)``, and the elements it is over.

    Args:
        x: ``(N, C, H, W)``; N may be 0.
        centred: False gives the mean of squares instead.
        group: a ``torch.distributed`` process group: the variance is that of the concatenation of
            every rank's ``x``. Counts may differ between ranks, N = 0 included. Ranks are merged by
            count, mean and M2 (Chan, Golub, LeVeque 1979), with one collective here and one in the
            backward pass, which every rank enters.

    Returns:
        ``(variance, count)``: ``(C,)`` in the dtype of the statistics and a scalar tensor.
        The variance over 0 elements is NaN.
    """
    if group is None and (_is_captured() or not _records_gradient(x)):
        count, _, m2 = local_moments(x, centred=centred)
        return m2 / count, count
    return _BatchVariance.apply(x, centred, group)


def local_moments(x, *, centred=True):
    """``(count, mean, M2)`` of every channel over batch and space: scalar, ``(C,)``, ``(C,)``.

    M2 is the sum of squared deviations from the mean; with ``centred=False`` the mean is 0.
    """
    x = x.to(_compute_dtype(x))
    count = torch.full(
        (), float(x.shape[0] * x.shape[2] * x.shape[3]), dtype=x.dtype, device=x.device
    )
    if not centred:
        return count, x.new_zeros(x.shape[1]), x.square().sum((0, 2, 3))
    if x.numel() == 0:
        return count, x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return count, mean, var * count


def gather_moments(count, mean, m2, group):
    """The moments ``()``, ``(C,)``, ``(C,)`` of every rank: ``(R,)``, ``(R, C)``, ``(R, C)``."""
    local = torch.cat([count.view(1), mean, m2])
    ranks = dist.get_world_size(group)
    gathered = local.new_zeros(ranks, local.numel())
    gathered[dist.get_rank(group)] = local
    # A sum with zeros gathers, and every backend has it.
    dist.all_reduce(gathered, group=group)
    return gathered[:, 0], *gathered[:, 1:].split(mean.numel(), 1)


def merge_moments(counts, means, m2s):
    """Merge ``(R,)``, ``(R, C)``, ``(R, C)`` moments of R parts into those of their union."""
    total = counts.sum()
    share = (counts / total.clamp(min=1))[:, None]
    mean = (share * means).sum(0)
    m2 = (m2s + counts[:, None] * (means - mean).square()).sum(0)
    return total, mean, m2


def _compute_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _channels(p, dtype):
    return p.to(dtype).view(1, -1, 1, 1)


def _records_gradient(*tensors):
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _is_captured():
    # A compiler decides itself what to keep, and a traced graph must hold plain operations.
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _apply(formula, impl, *tensors, **options):
    """Evaluate a formula so that eager autograd keeps its inputs only."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if _is_captured() or not _records_gradient(*tensors):
        return formula(*tensors, **options)
    return _Recompute.apply(formula, options, *tensors)


class _Recompute(torch.autograd.Function):
    """Keeps the inputs of a formula and evaluates it again in the backward pass."""

    @staticmethod
    def forward(ctx, formula, options, *tensors):
        ctx.formula, ctx.options = formula, options
        ctx.save_for_backward(*tensors)
        return formula(*tensors, **options)

    @staticmethod
    def backward(ctx, grad):
        tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        create_graph = torch.is_grad_enabled()
        if create_graph:
            # Connected to what produced the inputs, for gradients of higher order; views, for the
            # gradient of x here must not pass through another input that was computed from x.
            tensors = [t.view_as(t) for t in tensors]
        else:
            tensors = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        with torch.enable_grad():
            y = ctx.formula(*tensors, **ctx.options)
        wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
        grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=create_graph))
        return None, None, *(next(grads) if n else None for n in needed)


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks; its own adjoint, so gradients of every order are summed as well."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _AllReduceSum.apply(grad, ctx.group), None


class _BatchVariance(torch.autograd.Function):
    """Variance over batch and space, of all ranks of a group where there is one."""

    @staticmethod
    def forward(ctx, x, centred, group):
        count, mean, m2 = local_moments(x, centred=centred)
        if group is not None:
            count, mean, m2 = merge_moments(*gather_moments(count, mean, m2, group))
        ctx.centred, ctx.group = centred, group
        ctx.save_for_backward(x, mean, count)
        ctx.mark_non_differentiable(count)
        return m2 / count, count

    @staticmethod
    def backward(ctx, grad, _):
        saved, mean, count = ctx.saved_tensors
        x = saved.to(mean.dtype)
        count = count.clamp(min=1)
        if ctx.group is not None:
            grad = _AllReduceSum.apply(grad, ctx.group)
        if torch.is_grad_enabled() and ctx.centred:
            mean = x.sum((0, 2, 3))
            if ctx.group is not None:
                mean = _AllReduceSum.apply(mean, ctx.group)
            mean = mean / count
        scale = _channels(grad * (2 / count), x.dtype)
        return ((x - _channels(mean, x.dtype)) * scale).to(saved.dtype), None, None


def _var(x, dim):
    # var() of an empty batch would warn. A graph captured from one must hold for others.
    return x.var(dim, correction=0) if _is_captured() or x.numel() else x.mean(dim)


def _per_channel(x, channels):
    """``(N, G)`` of groups to ``(N, C, 1, 1)``, broadcastable to their elements."""
    return x.repeat_interleave(channels // x.shape[1], 1)[:, :, None, None]


def _group_var(x, groups):
    c = x.shape[1]
    return _per_channel(_var(x.unflatten(1, (effective_groups(c, groups), -1)), (2, 3, 4)), c)


def _group_mean_square(x, groups):
    c = x.shape[1]
    mean = _instance_mean_square(x).unflatten(1, (effective_groups(c, groups), -1)).mean(2)
    return _per_channel(mean[:, :, 0, 0], c)


def _instance_var(x):
    return _var(x, (2, 3))[:, :, None, None]


def _instance_mean_square(x):
    # Not mean(), whose gradient is contiguous where x is channels_last.
    return x.square().sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


def _in_compute_dtype(formula):
    """Run a formula in the dtype of the statistics, return in that of ``x``, then gamma, beta."""

    def wrapped(x, weight, bias, *params, **options):
        compute = _compute_dtype(x)
        y = formula(x.to(compute), *(_channels(p, compute) for p in params), **options)
        y = torch.addcmul(_channels(bias, compute), y, _channels(weight, compute))
        return y.to(x.dtype)

    return wrapped


@_in_compute_dtype
def _s0(x, v, groups, eps):
    return x * torch.sigmoid(v * x) * (_group_var(x, groups) + eps).rsqrt()


@_in_compute_dtype
def _s1(x, groups, eps):
    return torch.nn.functional.silu(x) * (_group_var(x, groups) + eps).rsqrt()


@_in_compute_dtype
def _s2(x, groups, eps):
    return torch.nn.functional.silu(x) * (_group_mean_square(x, groups) + eps).rsqrt()


@_in_compute_dtype
def _b0(x, batch_var, v, eps):
    return x / torch.maximum((batch_var + eps).sqrt(), v * x + (_instance_var(x) + eps).sqrt())


@_in_compute_dtype
def _b1(x, batch_var, eps):
    rms = (_instance_mean_square(x) + eps).sqrt()
    return x / torch.maximum((batch_var + eps).sqrt(), (x + 1) * rms)


@_in_compute_dtype
def _b2(x, batch_var, eps):
    rms = (_instance_mean_square(x) + eps).sqrt()
    return x / torch.maximum((batch_var + eps).sqrt(), rms - x)


@_in_compute_dtype
def _affine(x):
    return x


@_in_compute_dtype
def _pixelnorm(x, eps):
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def _pixelnorm_relu(x, weight, bias, eps):
    return torch.relu(_pixelnorm(x, weight, bias, eps=eps))


@_in_compute_dtype
def _frn(x, eps):
    return x * (_instance_mean_square(x) + eps).rsqrt()


def _frn_tlu(x, weight, bias, threshold, eps):
    z = _frn(x.to(_compute_dtype(x)), weight, bias, eps=eps)
    return _tlu(z, threshold).to(x.dtype)


def _tlu(x, threshold):
    compute = _compute_dtype(x)
    return torch.maximum(x.to(compute), _channels(threshold, compute)).to(x.dtype)


def _swish(x, v):
    compute = _compute_dtype(x)
    z = x.to(compute)
    return (z * torch.sigmoid(_channels(v, compute) * z)).to(x.dtype)


@_in_compute_dtype
def _random(x, eps):
    # z > 0, so sign(z) sqrt|z| is sqrt(z); the layer is constant over space.
    z = (_instance_var(torch.sigmoid(x)) + eps).sqrt()
    return z.sqrt() * torch.ones_like(x)


@_in_compute_dtype
def _random_rej(x):
    return torch.tanh(torch.maximum(x, torch.tanh(x)))


@_in_compute_dtype
def _rs_rej(x, batch_mean_square, eps):
    return torch.relu(x) * (batch_mean_square + eps).rsqrt()
