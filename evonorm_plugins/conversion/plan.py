"""What becomes of every norm and activation of a model."""

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch.nn.utils import parametrize

from evonorm_plugins.conversion import kinds, order
from evonorm_plugins.conversion.flow import MODES, join, read_flows
from evonorm_plugins.errors import AmbiguousError, ConvertError
from evonorm_plugins.torch_private import has_hooks


@dataclass
class Plan:
    """What :func:`plan_conversion` found, each by its path in the model.

    ``pairs``: norm -> the activation that goes with it (its name). ``affine``: norm -> what follows
    it. ``left``: norm -> why it is left. ``removed``: mode -> sites of activations that go, one for
    each call. ``sites``: site of an activation -> mode -> what precedes each call. ``modes``:
    see :class:`Flows`. ``by_order``: activation modules that go because of
    where they stand. ``inner``: activations that norms hold.
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
        found = {}
        for site, by_mode in self.sites.items():
            name = place(site)
            for mode, origins in by_mode.items():
                if site not in self.removed[mode] and name not in self.by_order:
                    found.setdefault(name, {}).update(dict.fromkeys(origins))
        return {name: ", ".join(origins) for name, origins in found.items()}


def place(site):
    """The path of the activation module that a site calls, or the function and where it is."""
    if site.op == "call_module":
        return f"{site.owner}.{site.target}" if site.owner else site.target
    name = site.target if isinstance(site.target, str) else site.target.__name__
    return f"{name}() in the forward of {site.owner or 'the model'}"


def plan_conversion(model, activations, keep=()):
    """Decide what becomes of every norm of ``model``.

    Args:
        activations: see :func:`gates.find_activations`.
        keep: patterns of norms to leave.

    Raises:
        ConvertError: there is no norm to replace, or it is not clear what to do with some.
    """
    norms = {path: m for path, m in model.named_modules() if kinds.is_norm(m)}
    _check_keep(keep, norms)
    left = {path: kinds.reason_to_leave(norm) for path, norm in norms.items()}
    if all(left.values()):
        raise ConvertError(_no_norms(model, norms))
    for path in norms:
        if any(fnmatchcase(path, pattern) for pattern in keep):
            left[path] = left[path] or "to be kept"
    flows = read_flows(model, activations)
    plan = Plan(sites=flows.activations, modes=flows.modes)
    plan.left = {path: reason for path, reason in left.items() if reason}
    planner = _Planner(model, activations, flows, plan)
    refused = {p: planner.enter(p, norm) for p, norm in norms.items() if p not in plan.left}
    refused = {path: reason for path, reason in refused.items() if reason} | _conflicts(plan)
    if refused:
        raise AmbiguousError(refused)
    return plan


class _Planner:
    """Enters norms into a plan."""

    def __init__(self, model, activations, flows, plan):
        self.model, self.activations, self.flows, self.plan = model, activations, flows, plan

    def enter(self, path, norm):
        """Enter a norm into the plan, or return why it is not clear what to do with it."""
        reason = _unfit(norm)
        if reason:
            return reason
        by_mode = self.flows.norms.get(path)
        if by_mode is None:
            return self._enter_unseen(path, norm)
        calls = [(mode, followed) for mode in by_mode for followed in by_mode[mode]]
        return _used_twice(calls) or self._enter_followed(path, norm, calls)

    def _enter_followed(self, path, norm, calls):
        inner = kinds.inner_activation(norm)
        sites = [site for _, followed in calls for site in followed.activations]
        others = [other for _, followed in calls for other in followed.others]
        for _, followed in calls:
            if followed.second:
                first = type(inner).__name__ if inner is not None else place(sites[0])
                return f"{first} follows it, and then {followed.second}"
        if inner is not None:
            self._pair_with_inner(path, inner)
        else:
            reason = self._resolve_unknown(path, calls, others)
            if reason or path in self.plan.pairs:
                return reason
            if sites and others:
                return _mixed(calls, others[-1])
            if sites and not all(followed.activations for _, followed in calls):
                return "an activation follows it in one mode and not in the other"
            if sites:
                self.plan.pairs[path] = ", ".join(dict.fromkeys(map(place, sites)))
            else:
                self.plan.affine[path] = ", ".join(dict.fromkeys(others)) or "nothing"
        for mode, followed in calls:
            self.plan.removed[mode].extend(followed.activations)
        return None

    def _resolve_unknown(self, path, calls, others):
        """Find out by the order of children what tracing did not tell; adds to ``others``."""
        for unknown in dict.fromkeys(name for _, followed in calls for name in followed.unknown):
            module = self.model.get_submodule(unknown)
            shown = f"{type(module).__name__} {unknown}"
            if order.starts_with_activation(module, self.activations):
                return f"its output goes to {shown}, {self._untraceable(unknown)}"
            others.append(shown)
        for name in dict.fromkeys(followed.leaves for _, followed in calls if followed.leaves):
            reason = self._by_order(path, name)
            if reason or path in self.plan.pairs:
                return reason
            others.append(f"the output of {name}")
        return None

    def _enter_unseen(self, path, norm):
        """A norm that no traced forward calls."""
        parent = path.rpartition(".")[0]
        if not path:
            self.plan.affine[path] = "the output"
            return None
        if parent not in self.flows.opaque:
            self.plan.left[path] = "forward does not call it"
            return None
        inner = kinds.inner_activation(norm)
        if inner is not None:
            self._pair_with_inner(path, inner)
            return None
        reason = self._by_order(path, path)
        if not reason and path not in self.plan.pairs:
            self.plan.affine[path] = f"the next child of {parent or 'the model'}"
        return reason

    def _by_order(self, norm, child):
        """Pair ``norm`` with the activation after ``child``, or return why that is not clear."""
        parent = child.rpartition(".")[0]
        owner = self.model.get_submodule(parent)
        module = self.model.get_submodule(child)
        name, reason = order.follower(owner, module, self.activations)
        if reason:
            return f"it is in {parent or 'the model'}, {self._untraceable(parent)}, {reason}"
        if name is not None:
            self.plan.pairs[norm] = join(parent, name)
            self.plan.by_order.add(join(parent, name))
        return None

    def _pair_with_inner(self, path, inner):
        self.plan.pairs[path] = f"its {type(inner).__name__}"
        self.plan.inner.add(f"{path}.act")

    def _untraceable(self, path):
        return f"whose forward cannot be traced ({self.flows.opaque[path]})"


def _unfit(norm):
    if kinds.is_unknown_subclass(norm):
        return f"its class {type(norm).__name__} has a forward of its own"
    if parametrize.is_parametrized(norm):
        return "its parameters are parametrized"
    if has_hooks(norm):
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


def _mixed(calls, last):
    for _, followed in calls:
        if followed.activations and (followed.others or followed.unknown or followed.leaves):
            site, other = followed.activations[0], (*followed.others, last)[0]
            return f"its output goes to {place(site)}, and unactivated to {other}"
    return "an activation follows it in one mode and not in the other"


def _conflicts(plan):
    """Activations in modules that run several times, which follow a norm, but not each time."""
    refused = {}
    for mode, sites in plan.removed.items():
        for site, count in Counter(sites).items():
            origins = plan.sites[site][mode]
            if count < len(origins):
                reason = f"it follows {', '.join(dict.fromkeys(origins))}: not always a norm"
                refused[place(site)] = reason
    return refused


def _check_keep(keep, norms):
    for pattern in keep:
        if not any(fnmatchcase(path, pattern) for path in norms):
            raise ConvertError(f"keep: no norm of the model has a name like {pattern!r}")


def _no_norms(model, norms):
    name = type(model).__name__
    if not norms:
        ours = Counter(type(m).__name__ for m in model.modules() if kinds.is_norm_act(m))
        shown = ", ".join(f"{count} {kind}" for kind, count in ours.items())
        return f"{name} holds no norm" + (f", but {shown} already" if ours else "")
    others = Counter(type(norm).__name__ for norm in norms.values())
    shown = ", ".join(f"{count} {kind}" for kind, count in others.items())
    return f"{name} holds no norm of (N, C, ...), only {shown}"
