"""Precise statistics (``TEST.PRECISE_BN``) for the layers with a moving variance.

Detectron2's hook knows ``torch.nn.BatchNorm`` alone. Here the moving variance of a layer becomes
the variance of everything the layer saw in a number of batches, on all ranks, weighted by the
number of elements: batches and ranks are merged by count, mean and M2 in float64. So does every
moving statistic of a layer graph, with that of what its node saw.
"""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from detectron2.utils import comm
from fvcore.nn import precise_bn
from torch import nn

from evonorm_plugins.integrations.patch import copy_function, redirect
from evonorm_plugins.layers import BatchDependent
from evonorm_plugins.statistics import gather_moments, local_moments, merge_moments

_Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # count, mean and M2
_get_bn_modules = precise_bn.get_bn_modules
# The function inside torch.no_grad()'s.
_update_bn_stats = precise_bn.update_bn_stats.__wrapped__
_stock_get_bn_modules = copy_function(_get_bn_modules)
_stock_update_bn_stats = copy_function(_update_bn_stats)
# Within fvcore's own update, which needs layers with a running mean.
_stock_layers_alone = contextvars.ContextVar("stock_layers_alone", default=False)


def get_batch_statistics_layers(model: nn.Module) -> list[BatchDependent]:
    """Norm-activation layers of ``model`` that use batch statistics in the mode they are in."""
    return [m for m in model.modules() if isinstance(m, BatchDependent) and m.uses_batch()]


def get_bn_modules(model: nn.Module) -> list[nn.Module]:
    stock = _stock_get_bn_modules(model)
    return stock if _stock_layers_alone.get() else stock + get_batch_statistics_layers(model)


def update_bn_stats(
    model: nn.Module, data_loader: Iterable, num_iters: int = 200, progress: str | None = None
) -> None:
    layers = get_batch_statistics_layers(model)
    seen: dict[tuple[BatchDependent, str], _Moments] = {}

    def collector(layer: BatchDependent) -> Callable[[str, torch.Tensor], None]:
        def collect(name: str, x: torch.Tensor) -> None:
            centred = layer.moving_statistics()[name] != "rms"
            parts = local_moments(x.double(), centred=centred)
            before = seen.get((layer, name))
            if before is not None:
                parts = merge_moments(*(torch.stack(p) for p in zip(before, parts, strict=True)))
            seen[layer, name] = parts

        return collect

    with contextlib.ExitStack() as observing:
        for layer in layers:
            observing.enter_context(layer.observed(collector(layer)))
        if _stock_get_bn_modules(model):
            token = _stock_layers_alone.set(True)
            observing.callback(_stock_layers_alone.reset, token)
            _stock_update_bn_stats(model, data_loader, num_iters, progress)
        elif layers:
            for inputs in itertools.islice(data_loader, num_iters):
                model(inputs)
    for layer in layers:
        for name, kind in layer.moving_statistics().items():
            _set_moving_statistic(getattr(layer, name), kind, seen.get((layer, name)))


def _set_moving_statistic(buffer: torch.Tensor, kind: str, moments: _Moments | None) -> None:
    if moments is None:  # the layer did not run on this rank; it may have on others
        zeros = torch.zeros_like(buffer, dtype=torch.float64)
        moments = zeros.new_zeros(()), zeros, zeros
    if comm.get_world_size() > 1:
        moments = merge_moments(*gather_moments(*moments, dist.group.WORLD))
    count, mean, m2 = moments
    precise = torch.where(count > 0, mean, torch.nan) if kind == "mean" else m2 / count
    # Over 0 elements or over values that are not finite there is none: the moving average stays.
    buffer.copy_(torch.where(torch.isfinite(precise), precise, buffer))


def register() -> None:
    redirect(_get_bn_modules, get_bn_modules)
    redirect(_update_bn_stats, update_bn_stats)
