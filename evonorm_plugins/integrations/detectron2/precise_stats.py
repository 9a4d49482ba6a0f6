"""Precise statistics (``TEST.PRECISE_BN``) for the layers with a moving variance.

Detectron2's hook knows ``torch.nn.BatchNorm`` alone. Here the moving variance of a layer becomes
the variance of everything the layer saw in a number of batches, on all ranks, weighted by the
number of elements: batches and ranks are merged by count, mean and M2 in float64.
"""

import functools
import itertools

import torch
import torch.distributed as dist
from detectron2.engine import defaults, hooks
from detectron2.utils import comm
from fvcore.nn import precise_bn

from evonorm_plugins.integrations.detectron2.patch import rebind
from evonorm_plugins.layers import BatchStatistics
from evonorm_plugins.statistics import gather_moments, local_moments, merge_moments

_stock_get_bn_modules = precise_bn.get_bn_modules
_stock_update_bn_stats = precise_bn.update_bn_stats


def get_batch_statistics_layers(model):
    """Norm-activation layers of ``model`` that use batch statistics in the mode they are in."""
    return [m for m in model.modules() if isinstance(m, BatchStatistics) and m.uses_batch()]


@functools.wraps(_stock_get_bn_modules)
def get_bn_modules(model):
    return _stock_get_bn_modules(model) + get_batch_statistics_layers(model)


@functools.wraps(_stock_update_bn_stats)
@torch.no_grad()
def update_bn_stats(model, data_loader, num_iters=200, progress=None):
    layers = get_batch_statistics_layers(model)
    seen = {}

    def collect(layer, inputs):
        parts = local_moments(inputs[0].double(), centred=layer.centred)
        if layer in seen:
            parts = merge_moments(*(torch.stack(p) for p in zip(seen[layer], parts, strict=True)))
        seen[layer] = parts

    handles = [layer.register_forward_pre_hook(collect) for layer in layers]
    try:
        if _stock_get_bn_modules(model):
            _stock_update_bn_stats(model, data_loader, num_iters, progress)
        elif layers:
            for inputs in itertools.islice(data_loader, num_iters):
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        _set_running_var(layer, seen.get(layer))


def _set_running_var(layer, moments):
    var = layer.running_var
    if moments is None:  # the layer did not run on this rank; it may have on others
        zeros = torch.zeros_like(var, dtype=torch.float64)
        moments = zeros.new_zeros(()), zeros, zeros
    if comm.get_world_size() > 1:
        moments = merge_moments(*gather_moments(*moments, dist.group.WORLD))
    count, _, m2 = moments
    precise = m2 / count
    # Over 0 elements or over values that are not finite there is none: the moving average stays.
    var.copy_(torch.where(torch.isfinite(precise), precise, var))


def register():
    rebind(_stock_get_bn_modules, get_bn_modules)
    # Except where fvcore's own update looks its layers up: those must have a running mean.
    precise_bn.get_bn_modules = _stock_get_bn_modules
    rebind(_stock_update_bn_stats, update_bn_stats)
    assert defaults.get_bn_modules is get_bn_modules
    assert hooks.update_bn_stats is update_bn_stats
