"""What becomes of every norm and activation of a model."""

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from evonorm_plugins.convert import kinds
from evonorm_plugins.convert.errors import ConvertError
from evonorm_plugins.convert.flow import MODES, read_flows

_NOT_PLANAR = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d, nn.Linear)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Plan:
    """What :func:`plan_conversion` found, each by its path in the model.

    ``pairs``: norm -> the activation that goes with it (its name). ``affine``: norm -> what follows
    it. ``left``: norm -> why it is left. ``removed``: mode -> sites of activations that go. ``sites``:
    site of an activation -> mode -> what precedes each call. ``modes``: module -> modes in which its
    forward runs. ``by_order``: activation modules that go because of where they stand.
    ``inner``: activations that norms hold.
    """

    pairs: dict = field(default_factory=dict)
    affine: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)
    removed: dict = field(default_factory=lambda: {mode: [] for mode in MODES})
    sites: dict = field(default_factory=dict)
    modes: dict = field(default_factory=dict)
    by_order: set = field(default_factory=set)
    inner: set = field(default_factory=set)

    def gone(self):
        """Activation -> how many calls of it go, the inner ones of norms included."""
        calls = [Counter(map(place, set(sites))) for sites in self.removed.values()]
        return dict((calls[0] | calls[1]) + Counter(self.by_order) + Counter(self.inner))

    def stays(self):
        """Activation -> what precedes those calls of it that stay."""
        gone = {site for sites in self.removed.values() for site in sites}
        gone |= {site for site in self.sites if place(site) in self.by_order}
        found = {}
        for site, by_mode in self.sites.items():
            if site not in gone:
                origins = [origin for origins in by_mode.values() for origin in origins]
                found.setdefault(place(site), []).extend(dict.fromkeys(origins))
        return {name: ", ".join(dict.fromkeys(origins)) for name, origins in found.items()}


def place(site):
    """The path of the activation module that a site calls, or the function and where it is."""
    if site.op == "call_module":
        return f"{site.owner}.{site.target}" if site.owner else site.target
    name = site.target if isinstance(site.target, str) else site.target.__name__
    return f"{name}() in the forward of {site.owner or 'the model'}"


def plan_conversion(model, keep=()):
    """Decide what becomes of every norm of ``model``.

    Raises:
        ConvertError: there is no norm to replace, or it is not clear what to do with some.
    """
    plan, refused = Plan(), {}
    norms = {path: m for path, m in model.named_modules() if kinds.is_norm(m)}
    candidates = {}
    for path, norm in norms.items():
        reason = kinds.reason_to_leave(norm)
        if reason is None and any(fnmatchcase(path, pattern) for pattern in keep):
            reason = "to be kept"
        if reason is None:
            candidates[path] = norm
        else:
            plan.left[path] = reason
    _check_keep(keep, norms)
    if not candidates and not any(plan.left[path] == "to be kept" for path in plan.left):
        raise ConvertError(_no_norms(model, norms))
    flows = read_flows(model)
    plan.sites = flows.activations
    plan.modes = flows.owners
    for path, norm in candidates.items():
        refused[path] = _decide(path, norm, flows, plan, model)
    refused = {path: reason for path, reason in refused.items() if reason}
    if refused:
        raise ConvertError(_ambiguous(refused))
    return plan


def _decide(path, norm, flows, plan, model):
    """Enter a norm into the plan, or return why it cannot be."""
    by_mode = flows.norms.get(path)
    reason = _unfit(norm)
    if reason:
        return reason
    if any(isinstance(module, _NOT_PLANAR) for module in flows.inputs.get(path, ())):
        plan.left[path] = "its input is not (N, C, H, W)"
        return None
    if by_mode is None:
        return _decide_by_order(path, norm, flows, plan, model)
    calls = [(mode, followed) for mode in by_mode for followed in by_mode[mode]]
    reason = _used_twice(calls) or _unclear(calls)
    if reason:
        known = any(followed.unknown for _, followed in calls)
        return _decide_by_order(path, norm, flows, plan, model, reason) if known else reason
    inner = kinds.inner_activation(norm)
    activations = [site for _, followed in calls for site in followed.activations]
    if inner is not None:
        if activations:
            return f"it holds {type(inner).__name__}, and {place(activations[0])} follows"
        _pair_with_inner(path, norm, plan)
    elif activations:
        plan.pairs[path] = ", ".join(dict.fromkeys(map(place, activations)))
        for mode, followed in calls:
            plan.removed[mode].extend(followed.activations)
    else:
        others = dict.fromkeys(other for _, followed in calls for other in followed.others)
        plan.affine[path] = ", ".join(others) or "nothing"
    return None


def _pair_with_inner(path, norm, plan):
    plan.pairs[path] = f"its {type(kinds.inner_activation(norm)).__name__}"
    plan.inner.add(f"{path}.act")


def _unfit(norm):
    if kinds.is_unknown_subclass(norm):
        return f"its class {type(norm).__name__} has a forward of its own"
    if parametrize.is_parametrized(norm):
        return "its parameters are parametrized"
    if any(getattr(norm, hooks, None) for hooks in _HOOKS):
        return "it has hooks, which a new layer would not have"
    return None


def _used_twice(calls):
    # A module that runs several times, on the levels of a pyramid say, is no ambiguity: each run
    # calls its norm once. A norm that two places call is one.
    owners = {followed.call.owner for _, followed in calls}
    if len(owners) > 1:
        places = " and ".join(sorted(owner or "the model" for owner in owners))
        return f"it is used twice, in the forward of {places}"
    count = max(Counter((mode, followed.call) for mode, followed in calls).values())
    owner = next(iter(owners)) or "the model"
    return f"it is used {count} times in the forward of {owner}" if count > 1 else None


def _unclear(calls):
    unknown = [what for _, followed in calls for what in followed.unknown]
    if unknown:
        return f"its output goes to {unknown[0]}, and what happens there cannot be traced"
    for _, followed in calls:
        if followed.activations and followed.others:
            first, other = place(followed.activations[0]), followed.others[0]
            return f"its output goes to {first}, and without activation to {other}"
    if len({bool(followed.activations) for _, followed in calls}) > 1:
        return "an activation follows it in one place or mode and not in another"
    return None


def _decide_by_order(path, norm, flows, plan, model, reason=None):
    """For a norm in a module whose forward cannot be traced: its next sibling tells.

    Only where every norm of that module is followed by an activation of its own.
    """
    parent, _, _ = path.rpartition(".")
    while parent not in flows.opaque:
        if not parent:
            plan.left[path] = "forward does not call it"
            return reason
        parent = parent.rpartition(".")[0]
    why = reason or f"the forward of {parent or 'the model'} cannot be traced"
    why += f" ({flows.opaque[parent]})"
    if kinds.inner_activation(norm) is not None:
        _pair_with_inner(path, norm, plan)
        return None
    owner = model.get_submodule(parent)
    follower = _followers_by_order(owner).get(path.removeprefix(parent).lstrip("."))
    if follower is None:
        return why
    place_of = f"{parent}.{follower}" if parent else follower
    plan.pairs[path] = place_of
    plan.by_order.add(place_of)
    return None


def _followers_by_order(owner):
    children = list(owner.named_children())
    norms = [i for i, (_, child) in enumerate(children) if kinds.is_norm(child)]
    acts = [i for i, (_, child) in enumerate(children) if kinds.is_activation(child)]
    if [i + 1 for i in norms] != acts:
        return {}
    return {children[i][0]: children[i + 1][0] for i in norms}


def _check_keep(keep, norms):
    for pattern in keep:
        if not any(fnmatchcase(path, pattern) for path in norms):
            raise ConvertError(f"keep: no norm of the model has a name like {pattern!r}")


def _no_norms(model, norms):
    name = type(model).__name__
    if not norms:
        return f"{name} holds no norm"
    counts = Counter(type(norm).__name__ for norm in norms.values())
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{name} holds no norm of (N, C, H, W), only {shown}"


def _ambiguous(refused):
    lines = "\n".join(f"  {path or 'the model'}: {reason}" for path, reason in refused.items())
    return (
        "it is not clear what these norms should become; name those to leave as they are "
        f'with keep=["name", "name.*", ...]:\n{lines}'
    )
