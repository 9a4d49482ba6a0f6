"""One of torch's batch norms and an activation, in one kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from evonorm_plugins.kernels import ops, select_batch_norm
from evonorm_plugins.torch_private import has_hooks

_FORWARD = nn.BatchNorm2d.forward  # that of all dimensions


def batch_norm_act(
    norm: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    v: Tensor | None,
    act: str,
    impl: str,
) -> Tensor | None:
    """What ``norm`` and then an activation give, the moving averages updated as by ``norm``.

    ``x`` is ``(N, C, H, W)``; gamma and beta are those of ``norm`` where ``weight`` is None.
    None, and nothing is done, where that is left to ``norm`` itself: where no kernel computes,
    where ``norm`` is of another kind than torch's own or has hooks, and where it is to say what is
    wrong.
    """
    if type(norm).forward is not _FORWARD or has_hooks(norm):
        return None
    buffers = norm._buffers
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if weight is None:
        weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    if weight is None or bias is None or (mean is None) is not (var is None):
        return None
    training = norm.training
    is_given = not training and mean is not None
    if not is_given and x.numel() <= norm.num_features:  # torch refuses one number a channel
        return None
    batches = buffers.get("num_batches_tracked")
    direct = ops.is_direct(x, weight, bias, v, mean, var, batches)
    impl = select_batch_norm(impl, x, direct)
    if impl == "torch":
        return None
    given = (mean, var) if is_given else (None, None)
    y, statistics = ops.apply_batch_norm(
        x, weight, bias, v, *given, act, norm.eps, impl, direct=direct
    )
    if training and mean is not None and norm.track_running_stats:
        ops.move_moments(mean, var, batches, statistics, norm.momentum, impl, direct)
    return y
