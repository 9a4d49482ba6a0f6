"""Which of a module's new norms an activation follows: read from its data flow.

It is the reading of :func:`evonorm_plugins.convert`: ``forward`` is traced in both modes, the norms
in it as plain norms, and where that does not tell what follows one, nothing is guessed.
"""

import copy
from collections.abc import Iterator
from typing import Any

from detectron2 import layers as d2_layers
from torch import nn

from evonorm_plugins.conversion import gates, kinds
from evonorm_plugins.conversion.plan import Plan, place, plan_conversion
from evonorm_plugins.conversion.tracing import Site
from evonorm_plugins.errors import AmbiguousError, ConvertError
from evonorm_plugins.layers import NormAct

_DEFORMABLE = (d2_layers.DeformConv, d2_layers.ModulatedDeformConv)
# They apply ``activation``, where it is not None, right behind ``norm``.
_FORWARDS = [cls.forward for cls in (d2_layers.Conv2d, *_DEFORMABLE)]


class _Deformable(nn.Module):
    """What follows a deformable convolution, whose own operation cannot be traced."""

    def __init__(self, norm: nn.Module | None, activation: Any) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(self, x: Any, offset: Any, mask: Any = None) -> Any:
        x = x if self.norm is None else self.norm(x + offset)
        return x if self.activation is None else self.activation(x)


def place_by_flow(module: nn.Module, new: list[NormAct]) -> None:
    """Take out what follows the norms ``new`` and activates; the others get no activation.

    Activations are taken out where they are modules, or the ``activation=`` of a convolution.

    Raises:
        ConvertError: it is not clear what follows a norm, or an activation cannot be taken out. The
            module is as before.
    """
    norms = {name: m for name, m in module.named_modules() if any(m is n for n in new)}
    if not norms:
        return
    try:
        plan = _plan(module, norms)
    except AmbiguousError as error:
        raise ConvertError("; ".join(f"{n}: {why}" for n, why in error.refused.items())) from error
    left = {name: plan.left[name] for name in norms if name in plan.left}
    if left:
        name, why = next(iter(left.items()))
        raise ConvertError(f"{name}: {why}")
    removals = list(_removals(module, plan))
    for owner, attribute, value in removals:
        setattr(owner, attribute, value)
    for name, norm in norms.items():
        if name in plan.affine:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, norm.without_activation())


def _plan(module: nn.Module, norms: dict[str, NormAct]) -> Plan:
    # Parameters are shared; a norm-activation layer is to the tracer what it was asked as, a norm.
    shared: dict[int, Any] = {id(p): p for p in module.parameters()}
    for norm in norms.values():
        shared[id(norm)] = nn.BatchNorm2d(norm.num_features, device="meta")
    for m in module.modules():
        if isinstance(m, _DEFORMABLE):
            norm = shared.get(id(m.norm), m.norm)
            shared[id(m)] = _Deformable(norm, m.activation)
    try:
        sketch = copy.deepcopy(module, shared)
    except Exception as error:  # whatever an attribute does not stand
        raise ConvertError(f"it cannot be copied to be traced: {error}") from error
    others = [n for n, m in sketch.named_modules() if kinds.is_norm(m) and n not in norms]
    return plan_conversion(sketch, gates.find_activations(sketch), others)


def _removals(module: nn.Module, plan: Plan) -> Iterator[tuple[nn.Module, str, Any]]:
    """``(owner, attribute, what it becomes)`` of every activation that goes."""
    stays = plan.stays()
    sites = {site for removed in plan.removed.values() for site in removed}
    for path in plan.by_order:
        yield from _places(module, module.get_submodule(path))
    for site in sorted(sites, key=place):
        owner = module.get_submodule(site.owner)
        if type(owner).forward in _FORWARDS:
            yield owner, "activation", None
        elif site.op == "call_module" and place(site) not in stays:
            yield from _places(module, module.get_submodule(place(site)))
        else:
            raise ConvertError(_not_to_be_taken_out(owner, site, plan))


def _places(module: nn.Module, activation: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Wherever one object stands."""
    for owner in list(module.modules()):
        for attribute, child in list(owner._modules.items()):
            if child is activation:
                yield owner, attribute, nn.Identity()


def _not_to_be_taken_out(owner: nn.Module, site: Site, plan: Plan) -> str:
    name = place(site)
    norm = next((n for n, acts in plan.pairs.items() if name in acts.split(", ")), "a norm")
    if site.op == "call_module":
        return f"{name} follows {norm}, and elsewhere {plan.stays()[name]}, where it must stay"
    written = f"{name.partition('(')[0]}() is written into the forward of {type(owner).__name__}"
    return f"{norm} is followed by an activation that cannot be taken out: {written}"
