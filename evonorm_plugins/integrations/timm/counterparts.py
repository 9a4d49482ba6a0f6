"""Which layer of this package computes what one of timm's does.

:data:`COUNTERPARTS` is the table. Statistics, eps and moving averages are those of timm 1.0
(``timm/layers/evo_norm.py``, ``filter_response_norm.py`` and ``norm_act.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from timm.layers import (
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    GroupNorm1Act,
    GroupNormAct,
)
from torch import nn

from evonorm_plugins import layers
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.integrations.timm.layers import FRNTau, FusedGroupNormAct

# A layer without values, or why there is none.
Counterpart = layers.NormAct | str
# What activates -> the layer: a class of activations, Parameter where the layer has a learned one
# of its own, None where it has none.
Forms = Mapping[type | None, Callable[..., layers.NormAct]]

_ACTIVATIONS = {None: "none", nn.ReLU: "relu", nn.SiLU: "silu"}
_GROUP_NORM: Forms = {
    kind: functools.partial(FusedGroupNormAct, act=act) for kind, act in _ACTIVATIONS.items()
}
_FRN: Forms = {
    kind: functools.partial(FusedGroupNormAct, act=act, statistics="rms", group_size=1)
    for kind, act in _ACTIVATIONS.items()
}
_FRN_TLU: Forms = {None: _FRN[None], nn.Parameter: FRNTau}


def counterpart(module: nn.Module) -> Counterpart:
    """The layer that computes what ``module`` does, with its parameters and buffers.

    Returns:
        The layer, or why ``module`` has to stay.
    """
    kind = type(module).__name__
    if type(module) not in COUNTERPARTS:
        return f"{kind} is a class of its own"
    if "forward" in vars(module):
        return "its forward has been replaced"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its gamma is no parameter"
    try:
        ours = COUNTERPARTS[type(module)](module)
    except ConfigError as error:
        return str(error)
    return ours if isinstance(ours, str) else _sharing(ours, module)


def _sharing(ours: layers.NormAct, theirs: nn.Module) -> Counterpart:
    """``ours`` with the parameters and buffers of ``theirs``, the same objects."""
    pairs: Any = (
        (ours._parameters, theirs._parameters),
        (ours._buffers, theirs._buffers),
    )
    for of_ours, of_theirs in pairs:
        expected, there = (
            {name for name, tensor in tensors.items() if tensor is not None}
            for tensors in (of_ours, of_theirs)
        )
        if expected != there:
            return (
                f"it has {_listed(there)} where a {type(theirs).__name__} has {_listed(expected)}"
            )
        of_ours.update({name: of_theirs[name] for name in expected})
    return ours


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _batch(layer: Callable[..., layers.NormAct]) -> Callable[[Any], Counterpart]:
    def build(m: Any) -> Counterpart:
        return layer(
            m.weight.numel(),
            apply_act=m.apply_act,
            eps=m.eps,
            momentum=m.momentum,
            unbiased_running_var=True,
            device="meta",
        )

    return build


def _sample(
    layer: Callable[..., layers.NormAct], statistics: str, *, always: bool = False
) -> Callable[[Any], Counterpart]:
    """
    Args:
        layer: with its activation.
        statistics: what it divides by.
        always: whether timm's layer divides where ``apply_act`` is False, too.
    """
    divides = functools.partial(FusedGroupNormAct, act="none", statistics=statistics)
    forms: Forms = {nn.Parameter: layer, nn.SiLU: layer, None: divides}

    def build(m: Any) -> Counterpart:
        channels = m.weight.numel()
        if not (m.apply_act or always):
            return layer(channels, apply_act=False, eps=m.eps, groups=m.groups, device="meta")
        if channels % m.groups:
            return f"its {m.groups} groups do not divide {channels} channels, so it cannot run"
        if getattr(getattr(m, "act", None), "inplace", False):
            return "its activation overwrites what statistics are taken of"
        return _of_form(forms, m, eps=m.eps, groups=m.groups)

    return build


def _filter_response(forms: Forms) -> Callable[[Any], Counterpart]:
    return lambda m: _of_form(forms, m, eps=m.eps)


def _group_norm(m: Any) -> Counterpart:
    if not isinstance(m.drop, nn.Identity):
        return f"{type(m.drop).__name__} comes between norm and activation"
    return _of_form(_GROUP_NORM, m, eps=m.eps, groups=m.num_groups)


def _of_form(forms: Forms, m: Any, **options: Any) -> Counterpart:
    """The layer of ``forms`` whose activation is that of ``m``."""
    act = _activation(m)
    if act not in forms:
        with_act = "without activation" if act is None else f"with {act.__name__}"
        return f"this package has no {type(m).__name__} {with_act}"
    return forms[act](m.weight.numel(), apply_act=act is not None, device="meta", **options)


def _activation(m: Any) -> type | None:
    """What activates in ``m``, as a key of ``Forms``."""
    if not hasattr(m, "act"):
        learned = m.v if hasattr(m, "v") else m.tau
        return None if learned is None else nn.Parameter
    return None if isinstance(m.act, nn.Identity) else type(m.act)


COUNTERPARTS: dict[type[nn.Module], Callable[[Any], Counterpart]] = {
    EvoNorm2dB0: _batch(layers.EvoNormB0),
    EvoNorm2dB1: _batch(layers.EvoNormB1),
    EvoNorm2dB2: _batch(layers.EvoNormB2),
    EvoNorm2dS0: _sample(layers.EvoNormS0, "std"),
    EvoNorm2dS0a: _sample(layers.EvoNormS0, "std", always=True),
    EvoNorm2dS1: _sample(layers.EvoNormS1, "std"),
    EvoNorm2dS1a: _sample(layers.EvoNormS1, "std", always=True),
    EvoNorm2dS2: _sample(layers.EvoNormS2, "rms"),
    EvoNorm2dS2a: _sample(layers.EvoNormS2, "rms", always=True),
    FilterResponseNormTlu2d: _filter_response(_FRN_TLU),
    FilterResponseNormAct2d: _filter_response(_FRN),
    GroupNormAct: _group_norm,
    GroupNorm1Act: _group_norm,
}
KINDS = tuple(COUNTERPARTS)
