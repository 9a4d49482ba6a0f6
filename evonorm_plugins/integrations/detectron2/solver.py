"""Weight decay: gamma, beta and v of norm-activation layers obey ``SOLVER.WEIGHT_DECAY_NORM``.

SGD in one pass over weights, gradients and momentum, on CPUs.
"""

import inspect
from typing import Any

import torch
from detectron2.solver import build
from torch import nn

from evonorm_plugins.integrations.patch import copy_function, redirect
from evonorm_plugins.layers import NormAct

_stock = copy_function(build.get_default_optimizer_params)
_signature = inspect.signature(_stock)


def get_default_optimizer_params(
    model: nn.Module, *args: Any, **kwargs: Any
) -> list[dict[str, Any]]:
    groups = _stock(model, *args, **kwargs)
    options = _signature.bind(model, *args, **kwargs).arguments
    weight_decay = options.get("weight_decay_norm")
    if weight_decay is None:
        return groups
    # What the caller gave by parameter name wins, as it does for Detectron2's own norms.
    named = {n for n, o in (options.get("overrides") or {}).items() if "weight_decay" in o}
    if options.get("weight_decay_bias") is not None:
        named.add("bias")
    norm_params = {
        id(p)
        for module in model.modules()
        if isinstance(module, NormAct)
        for name, p in module.named_parameters(recurse=False)
        if name not in named
    }
    split = []
    for group in groups:
        mine = [p for p in group["params"] if id(p) in norm_params]
        others = [p for p in group["params"] if id(p) not in norm_params]
        if others:
            split.append({**group, "params": others})
        if mine:
            split.append({**group, "params": mine, "weight_decay": weight_decay})
    return build.reduce_param_groups(split)


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer; SGD of weights on a CPU takes torch's fused step, in half the time."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, torch.optim.SGD) and all(p.device.type == "cpu" for p in params):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def align_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Lay out momentum that was loaded as the weights are, as the fused step needs it.

    It differs where the run that saved it had weights in another layout.
    """
    for param, state in optimizer.state.items():
        momentum = state.get("momentum_buffer")
        if momentum is not None and momentum.stride() != param.stride():
            state["momentum_buffer"] = torch.empty_like(param).copy_(momentum)


def register() -> None:
    redirect(build.get_default_optimizer_params, get_default_optimizer_params)
