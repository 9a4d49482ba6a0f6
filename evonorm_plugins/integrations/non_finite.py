"""What went wrong where a loss is not finite."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

NOT_AGAIN = "No layer's output is non-finite when the batch runs again"


def first_non_finite(model: torch.nn.Module, *inputs: Any) -> str:
    """Say what first turns non-finite: a parameter, or a layer's output when a batch runs again.

    Args:
        model: a detection model in training mode.
        inputs: of the model, for that batch.
    """
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return f"The parameter {name} is not finite"
    found: list[tuple[str, str]] = []

    def check(name: str) -> Callable:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            tensors = [t for t in _tensors(output) if t.is_floating_point()]
            if not found and any(not torch.isfinite(t).all() for t in tensors):
                found.append((name, type(module).__name__))

        return hook

    modules = [(n, m) for n, m in model.named_modules() if n]
    handles = [m.register_forward_hook(check(n)) for n, m in modules]
    try:
        with torch.no_grad(), contextlib.suppress(FloatingPointError):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return "The first layer with a non-finite output is {} ({})".format(*found[0])
    return NOT_AGAIN


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return []
