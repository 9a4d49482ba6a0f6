"""Mixed precision: Detectron2's own on GPUs, bfloat16 on CPUs."""

import functools
from typing import Any

import torch
from torch import nn


def is_on_cpu(model: nn.Module) -> bool:
    return all(p.device.type == "cpu" for p in model.parameters())


def train_in_bfloat16(model: nn.Module) -> None:
    """Have a model on a CPU compute in bfloat16 while it is in training mode.

    Its weights stay in float32, their layout becomes channels_last, in which convolutions in
    bfloat16 are fastest. bfloat16 has the range of float32, so that no loss needs scaling.
    """
    forward = model.forward

    @functools.wraps(forward)
    def autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    model.forward = autocast  # type: ignore[method-assign]
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
