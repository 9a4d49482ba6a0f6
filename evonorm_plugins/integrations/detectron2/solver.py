"""Weight decay: gamma, beta and v of norm-activation layers obey ``SOLVER.WEIGHT_DECAY_NORM``."""

import inspect
from typing import Any

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


def register() -> None:
    redirect(build.get_default_optimizer_params, get_default_optimizer_params)
