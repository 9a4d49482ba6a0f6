"""What follows every norm, and what precedes every activation, in the graphs of a model."""

from dataclasses import dataclass, field
from typing import NamedTuple

from evonorm_plugins.conversion import gates, kinds
from evonorm_plugins.conversion.tracing import Call, FlowTracer, trace

MODES = ("train", "eval")
_IN_WORDS = {
    **dict.fromkeys(("add", "iadd"), "an addition"),
    **dict.fromkeys(("mul", "imul"), "a product"),
    **dict.fromkeys(("cat", "concat"), "a concatenation"),
}


class Followed(NamedTuple):
    """What a call of a norm is followed by.

    ``activations``: their sites. ``others``: everything else, in words. ``unknown``: paths of
    modules that it goes to and that cannot be traced. ``leaves``: path of the module whose output
    it is, where that module's surroundings cannot be traced; else None. ``second``: an activation
    after an activation, in words, or None.
    """

    call: Call
    activations: list
    others: list
    unknown: list
    leaves: str | None
    second: str | None


@dataclass
class Flows:
    """What the graphs of a model tell, every path from the model's root.

    ``norms``: path -> mode -> what follows each of its calls. ``activations``: site -> mode -> what
    the input of each of its calls comes from. ``opaque``: path of a module whose forward cannot be
    traced -> why. ``modes``: path of a module -> mode in which its forward runs -> the arguments of
    its calls.
    """

    norms: dict = field(default_factory=dict)
    activations: dict = field(default_factory=dict)
    opaque: dict = field(default_factory=dict)
    modes: dict = field(default_factory=dict)


def read_flows(model, activations):
    """Trace ``model`` in both modes; where that cannot be done, the parts that can be.

    Args:
        activations: see :func:`gates.find_activations`.

    The mode of every module is as before in the end.
    """
    flows = Flows()
    training = {module: module.training for module in model.modules()}
    try:
        for mode in MODES:
            model.train(mode == "train")
            _read(model, "", mode, activations, flows)
    finally:
        for module, was in training.items():
            module.training = was
    return flows


def _read(model, path, mode, activations, flows):
    module = model.get_submodule(path)
    if kinds.is_norm(module) or not any(kinds.is_norm(m) for m in module.modules()):
        return
    tracer = FlowTracer(activations)
    if kinds.has_no_forward(module):
        graph, reason = None, f"a {type(module).__name__} has no forward"
    else:
        graph, reason = trace(tracer, module)
    if graph is None:
        flows.opaque[path] = reason
        parts = [name for name, _ in module.named_children()]
    else:
        flows.opaque.update({join(path, name): why for name, why in tracer.opaque.items()})
        _Reader(module, path, mode, tracer, flows).read(graph)
        opaque = ((name, module.get_submodule(name)) for name in tracer.opaque)
        parts = [join(name, child) for name, m in opaque for child, _ in m.named_children()]
    for part in parts:
        _read(model, join(path, part), mode, activations, flows)


class _Reader:
    """Reads a graph of the module at ``path`` into flows."""

    def __init__(self, root, path, mode, tracer, flows):
        self.path, self.mode, self.flows = path, mode, flows
        self.activations, self.opaque = tracer.activations, tracer.opaque
        self.arguments = tracer.arguments
        self.modules = dict(root.named_modules())

    def read(self, graph):
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            owner = join(self.path, node.meta["call"].owner)
            self.flows.modes.setdefault(owner, {}).setdefault(self.mode, [])
            module = self._module(node)
            if module is not None and kinds.is_norm(module):
                self._read_norm(node)
            elif self._is_activation(node):
                by_mode = self.flows.activations.setdefault(self._site(node), {})
                by_mode.setdefault(self.mode, []).append(self._origin(node))
        for name, calls in self.arguments.items():
            by_mode = self.flows.modes.setdefault(join(self.path, name), {})
            by_mode.setdefault(self.mode, []).extend(calls)

    def _read_norm(self, node):
        path = join(self.path, node.target)
        call = node.meta["call"]._replace(owner=join(self.path, node.meta["call"].owner))
        followed = Followed(call, *self._follow(node, self._inner_name(node)))
        self.flows.norms.setdefault(path, {}).setdefault(self.mode, []).append(followed)

    def _follow(self, node, before):
        """See :class:`Followed`; ``before`` is the name of the activation that node is, or None."""
        activations, others, unknown, leaves, second = [], [], [], None, None
        for user in self._users(node):
            if self._is_activation(user):
                name = self._activation_name(user)
                if before is not None and (name != before or name not in kinds.IDEMPOTENT):
                    second = self._describe(user)
                    continue
                activations.append(self._site(user))
                again = self._follow(user, name)
                activations += again[0]
                second = second or again[-1]
            elif user.op == "output" and self.path:
                leaves = self.path
            elif user.op == "call_module" and user.target in self.opaque:
                unknown.append(join(self.path, user.target))
            else:
                others.append(self._describe(user))
        return activations, others, unknown, leaves, second

    def _users(self, node):
        """Who reads the value of ``node``, those that pass it on looked through."""
        found = []
        for user in node.users:
            found.extend(self._users(user) if self._passes(user) else [user])
        factors = {u: gates.factor(u, self.modules) for u in found}
        products = {u: x for u, x in factors.items() if x is not None}
        gated = {n for u, x in products.items() for n in u.all_input_nodes if n is not x}
        if gated:
            found = [u for u in found if not self._leads_to(u, gated)]
            found = [gates.scaled(u, self.modules) if u in products else u for u in found]
        written = [self.order[u] for u in found if self._is_activation(u) and self._inplace(u)]
        # Who reads after an activation in place reads its result.
        return [
            u
            for u in found
            if not written or self.order[u] <= min(written) or self._is_activation(u)
        ]

    def _leads_to(self, user, gated):
        """Whether ``user`` is part of a gate that the value it reads is multiplied with."""
        while len(user.users) == 1 and user not in gated:
            user = next(iter(user.users))
        return user in gated

    def _site(self, node):
        site = node.meta["site"]
        return site._replace(owner=join(self.path, site.owner))

    def _module(self, node):
        return self.modules[node.target] if node.op == "call_module" else None

    def _is_activation(self, node):
        module = self._module(node)
        if module is not None:
            return module in self.activations
        return kinds.is_activation_call(node) or gates.gated_input(node, self.modules) is not None

    def _activation_name(self, node):
        return kinds.activation_name(node, self._module(node))

    def _inner_name(self, node):
        inner = kinds.inner_activation(self._module(node))
        return None if inner is None else kinds.activation_name(node, inner)

    def _inplace(self, node):
        return kinds.is_inplace(node, self._module(node))

    def _passes(self, node):
        module = self._module(node)
        return kinds.is_passing_call(node) if module is None else kinds.passes(module)

    def _describe(self, node):
        if node.op == "output":
            return f"the output of {self.path}" if self.path else "the output"
        module = self._module(node)
        if module is not None:
            return f"{type(module).__name__} {join(self.path, node.target)}"
        if node.op == "get_attr":
            return f"parameter {join(self.path, node.target)}"
        name = node.target if isinstance(node.target, str) else _name(node.target)
        return _IN_WORDS.get(name.strip("_"), name)

    def _origin(self, node):
        """Where the input of an activation comes from, in words."""
        source = gates.gated_input(node, self.modules) or next(iter(node.all_input_nodes), None)
        while source is not None and self._passes(source):
            source = next(iter(source.all_input_nodes), None)
        if source is None or source.op == "placeholder":
            return f"the input of {self.path}" if self.path else "the input"
        return self._describe(source)


def join(*names):
    """A path of the parts that are not empty."""
    return ".".join(name for name in names if name)


def _name(function):
    return getattr(function, "__name__", str(function)).strip("_")
