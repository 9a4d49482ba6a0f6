"""What follows every norm, and what precedes every activation, in the graphs of a model."""

from collections import namedtuple
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx, nn

from evonorm_plugins.convert import kinds
from evonorm_plugins.convert.tracing import Call, FlowTracer, Site, trace

# What one call of a norm is followed by: the sites of activations, and everything else in words.
Followed = namedtuple("Followed", "call activations others unknown")
MODES = ("train", "eval")


@dataclass
class Flows:
    """What the graphs of a model tell, each name in terms of the whole model.

    ``norms``: path -> mode -> what follows each of its calls. ``activations``: site -> what its
    input comes from. ``calls``: mode -> how many calls there are of every kind of site.
    ``opaque``: path of a module whose forward cannot be traced -> why. ``inputs``: path of a norm
    -> the modules that its input comes from.
    """

    norms: dict = field(default_factory=dict)
    activations: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    opaque: dict = field(default_factory=dict)
    owners: dict = field(default_factory=dict)


def read_flows(model):
    """Trace ``model`` in both modes; where that cannot be done, the parts that can be.

    The mode of every module is as before in the end.
    """
    flows = Flows()
    training = {module: module.training for module in model.modules()}
    try:
        for mode in MODES:
            model.train(mode == "train")
            _read(model, "", mode, flows)
    finally:
        for module, was in training.items():
            module.training = was
    return flows


def _read(model, path, mode, flows):
    module = model.get_submodule(path)
    if not any(kinds.is_norm(m) for m in module.modules()):
        return
    if kinds.is_norm(module) or kinds.is_norm_act(module):
        return
    tracer = FlowTracer()
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        graph, reason = None, f"{type(module).__name__} has no forward"
    else:
        graph, reason = trace(tracer, module)
    if graph is None:
        flows.opaque[path] = reason
        parts = [name for name, _ in module.named_children()]
    else:
        _Reader(module, path, mode, tracer.opaque, flows).read(graph)
        flows.opaque.update({_join(path, name): why for name, why in tracer.opaque.items()})
        parts = [
            f"{name}.{child}"
            for name in tracer.opaque
            for child, _ in module.get_submodule(name).named_children()
        ]
    for part in parts:
        _read(model, _join(path, part), mode, flows)


class _Reader:
    def __init__(self, root, path, mode, opaque, flows):
        self.path, self.mode, self.opaque, self.flows = path, mode, opaque, flows
        self.modules = dict(root.named_modules())

    def read(self, graph):
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            call = node.meta["call"]
            self.flows.owners.setdefault(_join(self.path, call.owner), set()).add(self.mode)
            module = self._module(node)
            if module is not None and kinds.is_norm(module):
                self._norm(node)
            elif self._is_activation(node):
                origin = self._origin(node)
                by_mode = self.flows.activations.setdefault(self.site(node), {})
                by_mode.setdefault(self.mode, []).append(origin)

    def site(self, node):
        site = node.meta["site"]
        return site._replace(owner=_join(self.path, site.owner))

    def _module(self, node):
        return self.modules[node.target] if node.op == "call_module" else None

    def _is_activation(self, node):
        module = self._module(node)
        return kinds.is_activation_call(node) if module is None else kinds.is_activation(module)

    def _passes(self, node):
        module = self._module(node)
        return kinds.is_passing_call(node) if module is None else kinds.passes(module)

    def _norm(self, node):
        path = _join(self.path, node.target)
        call = node.meta["call"]
        activations, others, unknown = [], [], []
        for user in self._users(node):
            if self._is_activation(user):
                activations.append(self.site(user))
            elif self._is_unknown(user):
                unknown.append(self._describe(user))
            else:
                others.append(self._describe(user))
        call = Call(_join(self.path, call.owner), call.number)
        followed = Followed(call, activations, others, unknown)
        self.flows.norms.setdefault(path, {}).setdefault(self.mode, []).append(followed)
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source.op == "call_module":
            self.flows.inputs.setdefault(path, []).append(self.modules[source.target])

    def _users(self, node):
        """Who reads the value of ``node``, those that pass it on looked through."""
        found = []
        for user in node.users:
            found.extend(self._users(user) if self._passes(user) else [user])
        writes = [
            self.order[u]
            for u in found
            if self._is_activation(u) and kinds.is_inplace(u, self._module(u))
        ]
        # Who reads after an activation in place reads its result.
        return [
            u for u in found if not writes or self.order[u] <= min(writes) or self._is_activation(u)
        ]

    def _is_unknown(self, node):
        at_the_end = node.op == "output" and self.path
        return bool(at_the_end) or (node.op == "call_module" and node.target in self.opaque)

    def _describe(self, node):
        if node.op == "output":
            return f"the output of {self.path}" if self.path else "the output"
        module = self._module(node)
        if module is not None:
            return f"{type(module).__name__} {_join(self.path, node.target)}"
        if kinds.is_addition(node):
            return "an addition"
        return node.target if isinstance(node.target, str) else _name(node.target)

    def _origin(self, node):
        """Where the input of an activation comes from: a norm's path, or words."""
        source = next(iter(node.all_input_nodes), None)
        while source is not None and self._passes(source):
            source = next(iter(source.all_input_nodes), None)
        if source is None or source.op == "placeholder":
            return "an input"
        return self._describe(source)


def _name(function):
    return getattr(function, "__name__", str(function))


def _join(*names):
    return ".".join(name for name in names if name)
