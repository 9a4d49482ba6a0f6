"""Graphs of a model's data flow (torch.fx) in which every operation knows whose forward made it."""

import inspect
import operator
import sys
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import fx

from evonorm_plugins.conversion import kinds
from evonorm_plugins.conversion.in_place import InPlaceProxy


class Site(NamedTuple):
    """A call within the forward of a module: the ``index``-th one of the same kind.

    ``target`` is the function, the name of the method, or the path of the child from the owner.
    """

    owner: str
    op: str
    target: object
    index: int


class Call(NamedTuple):
    """One run of a module's forward while its model is traced."""

    owner: str
    number: int


def autowrapped_functions():
    """Functions that must not be traced: those that timm, if it is there, says so of."""
    names = "timm.layers", "timm.layers._fx"
    timm = next((sys.modules[n] for n in names if hasattr(sys.modules.get(n), _TIMM)), None)
    return tuple(getattr(timm, _TIMM)()) if timm else ()


_TIMM = "get_notrace_functions"


# What an argument is that holds a value computed from the input.
GIVEN = object()


class _Tracer(fx.Tracer):
    """Gives every node ``meta["site"]`` and ``meta["call"]``.

    A parameter of forward that has a default is taken to have it.
    """

    def __init__(self):
        super().__init__(autowrap_functions=autowrapped_functions())
        self._calls = [Call("", 0)]
        self._numbers = Counter()
        self._counts = Counter()

    def proxy(self, node):
        return InPlaceProxy(node, self)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        positional, keywords = [self.root], {}
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                self._skip(p)
                continue
            value = self._argument(p)
            if p.kind is p.KEYWORD_ONLY:
                keywords[p.name] = value
            else:
                positional.append(value)
        return (lambda *args: root_fn(*args, **keywords)), positional

    def _argument(self, parameter):
        if parameter.default is parameter.empty:
            return self.create_proxy("placeholder", parameter.name, (), {})
        self.create_proxy("placeholder", parameter.name, (parameter.default,), {})
        return parameter.default

    def _skip(self, parameter):
        """Called for ``*args`` and ``**kwargs``, which are taken to be empty."""

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        # As fx does it, without a search through all parameters for each.
        path = self._parameter_paths().get(id(attr_val))
        if path is None:
            return attr_val
        proxy = parameter_proxy_cache.get(path)
        if proxy is None or proxy.node._erased:
            proxy = parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return proxy

    def _parameter_paths(self):
        if self._paths is None:
            self._paths = {id(p): name for name, p in self.root.named_parameters()}
        return self._paths

    _paths = None

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        call = self._calls[-1]
        if kind == "call_module" and call.owner:
            target = target.removeprefix(call.owner + ".")
        key = (call, kind, target)
        node.meta["call"] = call
        node.meta["site"] = Site(call.owner, kind, target, self._counts[key])
        self._counts[key] += 1
        return node

    @contextmanager
    def _running(self, path):
        self._calls.append(Call(path, self._numbers[path]))
        self._numbers[path] += 1
        try:
            yield
        finally:
            self._calls.pop()


class FlowTracer(_Tracer):
    """Traces into everything but norms, activations and torch's own modules.

    Args:
        activations: modules that are activations though :mod:`kinds` does not know their class.

    A module whose forward cannot be traced becomes one operation; ``opaque`` has its path and why.
    """

    def __init__(self, activations=frozenset()):
        super().__init__()
        self.activations = activations
        self.opaque = {}
        self.arguments = {}  # path -> the arguments of every call of its forward

    def is_leaf_module(self, m, module_qualified_name):
        known = kinds.is_norm(m) or kinds.is_norm_act(m) or kinds.is_activation(m)
        known = known or kinds.passes(m) or m in self.activations
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m, forward, args, kwargs):
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        before = last, self._counts.copy(), self.opaque.copy()
        try:
            with self._running(path):
                result = forward(*args, **kwargs)
            self.arguments.setdefault(path, []).append(_arguments(m, args, kwargs))
            return result
        except Exception as error:  # whatever a forward does with values that are not there
            self._undo(*before)
            self.opaque[path] = _first_line(error)
        return self.create_proxy("call_module", path, args, kwargs)

    def _undo(self, last, counts, opaque):
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
        self._counts, self.opaque = counts, opaque

    def to_bool(self, obj):
        # Is the tensor empty? Models ask before they compute; it is not.
        node = obj.node
        if node.target is operator.eq and 0 in node.args:
            asked = next((a for a in node.args if isinstance(a, fx.Node)), None)
            if asked is not None and asked.target in ("numel", "size"):
                return False
        return super().to_bool(obj)


def _arguments(module, args, kwargs):
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    return {name: GIVEN if _holds_proxy(value) else value for name, value in bound.items()}


def _holds_proxy(value):
    found = []
    fx.node.map_aggregate(value, lambda v: found.append(isinstance(v, fx.Proxy)))
    return any(found)


class ShallowTracer(_Tracer):
    """Traces the forward of one module; its children are operations.

    Args:
        calls: the arguments of every call of forward, as :class:`FlowTracer` has seen them. What is
            no tensor is taken to be the same in every call, and the graph checks that.
    """

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def is_leaf_module(self, m, module_qualified_name):
        return True

    def call_module(self, m, forward, args, kwargs):
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def _skip(self, parameter):
        if any(call.get(parameter.name) for call in self.calls):
            raise TypeError(f"it is called with *{parameter.name}")

    def _argument(self, parameter):
        name, default = parameter.name, parameter.default
        values = [call.get(name, default) for call in self.calls] or [default]
        if any(value is not values[0] and value != values[0] for value in values):
            raise TypeError(f"it is called with several kinds of {name}")
        args = () if default is parameter.empty else (default,)
        proxy = self.create_proxy("placeholder", name, args, {})
        if values[0] is GIVEN or values[0] is parameter.empty:
            return proxy
        self.create_proxy("call_function", require_argument, (proxy, values[0], name), {})
        return values[0]


def require_argument(value, expected, name):
    """Raises ValueError where a rewritten forward is called in a way that was not traced."""
    if value is not expected and (isinstance(value, torch.Tensor) or value != expected):
        shown = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
        raise ValueError(
            f"{name} is {shown}: the forward of this converted module takes {expected!r} only"
        )


def trace(tracer, module):
    """``(graph, None)``, or ``(None, reason)`` where the forward of ``module`` is not traceable."""
    try:
        return tracer.trace(module), None
    except Exception as error:  # see FlowTracer.call_module
        return None, _first_line(error)


def _first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
