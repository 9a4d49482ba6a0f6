"""Whether every norm-activation layer of a model stands where it should, seen while it runs."""

from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from evonorm_plugins.conversion.check import Activated, Watcher
from evonorm_plugins.errors import InputError
from evonorm_plugins.integrations.model_norms import norms_of
from evonorm_plugins.layers import NormAct


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` saw, by names of modules in the model.

    Attributes:
        with_activation: norm-activation layers that ran.
        without_activation: those of them that are affine transforms (``apply_act=False``).
        twice: activations, gates included, of what a norm-activation layer has activated already.
        unnormalized: activations of what the affine transform returns: no norm is before them.
        not_run: norm-activation layers that this run did not reach.
        other_norms: name -> description of every other norm.
    """

    with_activation: tuple[str, ...] = ()
    without_activation: tuple[str, ...] = ()
    twice: tuple[Activated, ...] = ()
    unnormalized: tuple[Activated, ...] = ()
    not_run: tuple[str, ...] = ()
    other_norms: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every norm-activation layer ran, and none is followed by what it should not."""
        return not (self.twice or self.unnormalized or self.not_run)

    def __str__(self) -> str:
        lines = [
            f"norms with activation: {len(self.with_activation)}",
            f"affine transforms: {len(self.without_activation)}",
            f"other norms: {len(self.other_norms)}",
        ]
        for title, found in (
            ("activated twice", self.twice),
            ("activated, but not normalized", self.unnormalized),
        ):
            lines.append(f"{title}: {len(found)}")
            lines += [f"  {_in_words(a)}" for a in found]
        lines.append(f"not run: {len(self.not_run)}")
        return "\n".join([*lines, *(f"  {name}" for name in self.not_run)])


def verify(model: nn.Module, *inputs: Any) -> Verification:
    """Run ``model(*inputs)`` once and see what follows each of its norm-activation layers.

    A layer with activation must be followed by none, not by a gate such as a sigmoid either; an
    affine transform (a layer without activation) must not be followed by an activation, for nothing
    would normalize there. What stands between them and changes no value (dropout, reshaping) or
    moves values (concatenation, pooling) is looked through.

    Args:
        model: of Detectron2 or any other ``nn.Module``, in the mode in which it is to be checked;
            in training mode a detector runs its losses too. It is left as it was: no gradients,
            and moving statistics and torch's random state are put back.
        inputs: what ``model`` is called with: for a detector, a list of dictionaries.

    Returns:
        Verification: ``print(report)`` shows it, ``report.ok`` sums it up.

    Raises:
        InputError: ``model`` is no module, has no norm-activation layer, or is scripted or
            compiled, so that its forward cannot be watched. What the model itself raises is
            raised on.
    """
    _check(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad(), EventStorage():
        try:
            with Watcher(model) as watcher:
                model(*inputs)
        finally:
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NormAct)}
    acts = {name for name, layer in layers.items() if layer.apply_act}
    found = watcher.activated
    gated = [a for a in watcher.bounded if a.layer in acts and a not in found]
    return Verification(
        with_activation=tuple(n for n in layers if n in watcher.ran & acts),
        without_activation=tuple(n for n in layers if n in watcher.ran - acts),
        twice=(*(a for a in found if a.layer in acts), *gated),
        unnormalized=tuple(a for a in found if a.layer not in acts),
        not_run=tuple(n for n in layers if n not in watcher.ran),
        other_norms={n: kind for n, kind in norms_of(model).items() if n not in layers},
    )


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"a model is an nn.Module, not {model!r}")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule) or kind == "OptimizedModule":
            done = "compiled" if kind == "OptimizedModule" else "scripted"
            where = f"{name} ({kind})" if name else "the model"
            raise InputError(f"{where} is {done}: verify the model it was made from")
    if not any(isinstance(module, NormAct) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} has no norm-activation layer: its NORM keys name other norms"
        )


def _in_words(found: Activated) -> str:
    through = f" through {', '.join(found.through)}" if found.through else ""
    where = f"the forward of {found.owner}" if found.owner else "the model's forward"
    return f"{found.layer}: {found.function} in {where}{through}"
