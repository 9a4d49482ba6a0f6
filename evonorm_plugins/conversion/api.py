"""``convert()``."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from evonorm_plugins.conversion import gates
from evonorm_plugins.conversion.layers import check_layer, new_layer
from evonorm_plugins.conversion.plan import Plan, place, plan_conversion
from evonorm_plugins.conversion.report import Report
from evonorm_plugins.conversion.rewrite import forward_without, give_forward
from evonorm_plugins.conversion.tracing import Site
from evonorm_plugins.errors import ConfigError, ConvertError
from evonorm_plugins.torch_private import has_hooks

_QUANTIZED = (
    "torch.ao.nn.",
    "torch.nn.quantized",
    "torch.nn.intrinsic",
    "torch.nn.qat",
    "torchao.",
)
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")


class Conversion(NamedTuple):
    """What :func:`convert` returns: the converted model and the :class:`Report`."""

    model: nn.Module
    report: Report


def convert(
    model: nn.Module,
    name: str | Callable[..., nn.Module],
    *,
    keep: str | Iterable[str] = (),
    **options: Any,
) -> Conversion:
    """A copy of ``model`` with norm-activation layers in place of its norms and activations.

    A norm that an activation follows is replaced together with it, any other by the affine
    transform, as the paper does (footnote 3). The data flow tells what follows: ``forward`` is
    traced with ``torch.fx``, in training and in evaluation mode. An activation after anything else,
    such as the ReLU after a residual addition, stays.

    Gamma and beta carry over, and the moving variance where both have one. The rest of a pretrained
    model expects the activations of its old layers: it must be trained again.

    Args:
        model: any ``nn.Module``; it is not changed.
        name: of a layer, as :func:`evonorm_plugins.get_norm_act` takes it, or a callable.
        keep: names of norms to leave as they are; ``*`` and ``?`` match any characters.
        options: of the layer, such as ``groups=16``.

    Returns:
        Conversion: ``(model, report)``.

    Raises:
        ConvertError: the name or an option is unknown, the model holds no norm to replace, is
            quantized or scripted, or it is not clear what some norm should become. The message
            names every such norm.
    """
    check_model(model, "convert")
    shown = check_layer(name, options)
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    model = copy.deepcopy(model)
    names = _activations(model)
    _give_each_place_its_own(names, model)
    sketch = _sketch(model)
    plan = plan_conversion(sketch, {sketch.get_submodule(name) for name in names}, keep)
    identities, rewrites = _how_to_remove(plan)
    for path in identities:
        if has_hooks(model.get_submodule(path)):
            raise ConvertError(f"{path} goes, and has hooks: remove them first")
    codes = _new_forwards(_sketch(model), plan, rewrites)
    layers = _new_layers(model, plan, name, options)
    layers.update({id(model.get_submodule(path)): nn.Identity() for path in identities})
    for path, code in codes.items():
        give_forward(model.get_submodule(path), code)
    report = Report(
        name=name if isinstance(name, str) else type(shown).__name__,
        replaced=plan.pairs,
        affine=plan.affine,
        left=plan.left,
        removed=plan.gone(),
        stays=plan.stays(),
        rewritten=tuple(codes),
    )
    return Conversion(_swap(model, layers), report)


def check_model(model: nn.Module, verb: str) -> None:
    """Refuse what cannot be converted, or whatever else ``verb`` says is to be done to it.

    Raises:
        ConvertError: it is no module, scripted, quantized, wrapped, or has lazy parameters.
    """
    if not isinstance(model, nn.Module):
        raise ConvertError(f"a model is an nn.Module, not {model!r}")
    for path, module in model.named_modules():
        kind, where = type(module), path or "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ConvertError(f"{where} is scripted: {verb} the model it was made from")
        if kind.__module__.startswith(_QUANTIZED):
            raise ConvertError(f"{where} is quantized ({kind.__name__}): {verb} before quantizing")
        if any(map(is_lazy, (*module.parameters(False), *module.buffers(False)))):
            raise ConvertError(
                f"{where} has no parameters yet ({kind.__name__}): run the model once"
            )
        if kind.__name__ in _WRAPPERS:
            raise ConvertError(f"{where} is a {kind.__name__}: {verb} the model before wrapping it")


def _sketch(model: nn.Module) -> nn.Module:
    """A copy to trace, with the same parameters: a forward may keep what it is called with."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _activations(model: nn.Module) -> list[str]:
    """Names of all activation modules, every name of one that has several."""
    sketch = _sketch(model)
    found = gates.find_activations(sketch)
    return [name for name, m in sketch.named_modules(remove_duplicate=False) if m in found]


def _give_each_place_its_own(names: list[str], model: nn.Module) -> None:
    """One ReLU object in several places would be removed from all of them or none."""
    seen: set[Any] = set()
    for name in names:
        path, _, key = name.rpartition(".")
        parent, activation = model.get_submodule(path), model.get_submodule(name)
        if name and (parent, key) not in seen and not any(True for _ in activation.parameters()):
            if activation in seen:
                parent._modules[key] = copy.deepcopy(activation)
            seen |= {activation, (parent, key)}


def _how_to_remove(plan: Plan) -> tuple[list[str], dict[str, set[Site]]]:
    """Activation modules that go as a whole, and modules whose forward has to be rewritten."""
    removed = {site for sites in plan.removed.values() for site in sites}
    stays = plan.stays()
    identities = set(plan.by_order)
    rewrites: dict[str, set[Site]] = {}
    for site in removed:
        if site.op == "call_module" and place(site) not in stays:
            identities.add(place(site))
        else:
            rewrites.setdefault(site.owner, set()).add(site)
    return sorted(identities), rewrites


def _new_forwards(
    model: nn.Module, plan: Plan, rewrites: dict[str, set[Site]]
) -> dict[str, dict[str, Any]]:
    codes: dict[str, dict[str, Any]] = {}
    for path in sorted(rewrites):
        module = model.get_submodule(path)
        was, codes[path] = module.training, {}
        for mode in sorted(plan.modes[path]):
            sites = set(plan.removed[mode]) & rewrites[path]
            module.training = mode == "train"
            codes[path][mode] = forward_without(module, path, sites, plan.modes[path][mode])
        module.training = was
    return codes


def _new_layers(
    model: nn.Module,
    plan: Plan,
    name: str | Callable[..., nn.Module],
    options: dict[str, Any],
) -> dict[int, nn.Module]:
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
    like = torch.empty(()) if like is None else like
    layers = {}
    for path in (*plan.pairs, *plan.affine):
        norm = model.get_submodule(path)
        try:
            layer = new_layer(norm, name, options, apply_act=path in plan.pairs, like=like)
        except ConfigError as error:
            raise ConvertError(f"{path or 'the model'}: {error}") from error
        layers[id(norm)] = layer
    return layers


def _swap(model: nn.Module, new: dict[int, nn.Module]) -> nn.Module:
    """Put ``new`` (id of the old module -> new one) in every place; returns the root."""
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if id(child) in new:
                parent._modules[key] = new[id(child)]
    return model
