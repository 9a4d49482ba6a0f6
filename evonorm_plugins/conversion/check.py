"""Whether a model still activates what a norm-activation layer returns, seen while it runs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from evonorm_plugins.conversion import gates, kinds
from evonorm_plugins.layers import NormAct

_ACTIVATIONS = {name.rstrip("_") for name in kinds.FUNCTION_NAMES}
# Functions of a bounded range: behind a norm they make a gate or an output.
_BOUNDED = {"sigmoid", "hardsigmoid", "tanh", "hardtanh", "softsign", "logsigmoid"}
_GATES = {*_BOUNDED, *gates.GATE_NAMES, "gt", "ge", "lt", "le"}
# name -> (place and keyword of the lower bound): what is a ReLU where that is 0.
_LOWER_BOUNDS = {
    **{name: (1, "min") for name in ("clamp", "clip", "clamp_min")},
    "hardtanh": (1, "min_val"),
}
_SHIFTS = {"add", "sub", "mul", "multiply", "div", "divide", "truediv", "neg", "pow"}
_PRODUCTS = {"mul", "multiply", "where"}
# An activation behind one of these can as well come before it.
_PASSING = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("stochastic_depth", "drop_path", "clone", "detach", "contiguous", "to", "type_as", "float"),
    *("half", "bfloat16", "double", "view", "reshape", "flatten", "unflatten", "permute"),
    *("transpose", "movedim", "squeeze", "unsqueeze"),
}
# These select or mix places and leave channels apart; of some of them several tensors are read.
_MOVING = {
    *("cat", "concat", "stack", "getitem", "chunk", "split", "pad", "index_select", "expand"),
    *("interpolate", "upsample", "grid_sample", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle"),
}


class Activated(NamedTuple):
    """An activation of what a norm-activation layer returns.

    ``layer``: its name in the model. ``function``: name of the activation. ``owner``: name of the
    innermost module whose forward applies it. ``through``: what came between that moves values
    (concatenation, pooling); empty where the activation is applied to the layer's very values.
    """

    layer: str
    function: str
    owner: str
    through: tuple[str, ...] = ()


class _Origin(NamedTuple):
    """Where the values of a tensor come from; ``state``: plain, shifted (by constants) or gate."""

    layers: frozenset[str]
    state: str
    through: tuple[str, ...]
    version: int


@dataclass
class Watcher(TorchFunctionMode):
    """Context in which a model runs and its norm-activation layers are watched.

    It sees calls of functions and methods, not what is traced, so it holds for any forward; what a
    scripted or compiled module does inside is not seen.

    Attributes:
        ran: the layers that ran.
        activated: activations of what the layers return, ``x * sigmoid(x)`` and its kin included.
        bounded: the same of sigmoid, tanh and their kin by themselves.
    """

    model: nn.Module
    ran: set[str] = field(default_factory=set)
    activated: list[Activated] = field(default_factory=list)
    bounded: list[Activated] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._origins: Any = WeakTensorKeyDictionary()
        self._owners: list[str] = []
        self._inside = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Watcher":
        for name, module in self.model.named_modules():
            before, after = self._hooks(name, isinstance(module, NormAct))
            self._handles.append(module.register_forward_pre_hook(before))
            self._handles.append(module.register_forward_hook(after))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _hooks(self, name: str, is_norm_act: bool) -> tuple[Callable[..., None], ...]:
        def before(module: nn.Module, inputs: Any) -> None:
            self._owners.append(name)
            self._inside += is_norm_act

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self._owners.pop()
            self._inside -= is_norm_act
            if is_norm_act and not self._inside:
                self.ran.add(name)
                self._remember(output, _Origin(frozenset([name]), "plain", (), 0))

        return before, after

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        origin = self._passed_on(_plain_name(func), args, kwargs)
        result = func(*args, **kwargs)
        for tensor in _tensors([result]):
            self._remember(tensor, origin)
        return result

    def _passed_on(self, name: str, args: Any, kwargs: dict[str, Any]) -> _Origin | None:
        """Enter what a call does to the output of a layer; returns what its result is of it."""
        values = list(_tensors([*args, *kwargs.values()]))
        origins = [o for o in map(self._origin, values) if o is not None]
        if not origins:
            return None
        first, states = origins[0], {o.state for o in origins}
        if name in _MOVING and states == {"plain"}:
            through = tuple(dict.fromkeys(t for o in origins for t in (*o.through, name)))
            return _Origin(frozenset().union(*(o.layers for o in origins)), "plain", through, 0)
        if len(values) == 1:
            return self._applied(name, first, args, kwargs)
        if (len(origins) < len(values) and name != "where") or len({o.layers for o in origins}) > 1:
            return None  # something else comes in
        if name in _PRODUCTS and "gate" in states and len(states) > 1:
            self._enter(self.activated, first, "a gate of itself")
            return None
        return first._replace(state="shifted") if name in _SHIFTS else None

    def _applied(
        self, name: str, origin: _Origin, args: Any, kwargs: dict[str, Any]
    ) -> _Origin | None:
        """The same for a function of one tensor."""
        if name in _PASSING:
            return origin
        if origin.state == "gate":
            return origin if name in _SHIFTS | _GATES else None
        rectifies = name in _LOWER_BOUNDS and _argument(args, kwargs, *_LOWER_BOUNDS[name]) == 0
        # Shifted, relu6 makes the gate of a hard swish.
        activations = _ACTIVATIONS if origin.state == "plain" else _ACTIVATIONS - _GATES
        if name in activations or (rectifies and origin.state == "plain"):
            self._enter(self.activated, origin, name)
        elif name in _BOUNDED:
            self._enter(self.bounded, origin, name)
        if name in _GATES:
            return origin._replace(state="gate")
        return origin._replace(state="shifted") if name in _SHIFTS else None

    def _enter(self, found: list[Activated], origin: _Origin, function: str) -> None:
        owner = self._owners[-1] if self._owners else ""
        for layer in sorted(origin.layers):
            entry = Activated(layer, function, owner, origin.through)
            if entry not in found:
                found.append(entry)

    def _remember(self, tensor: Any, origin: _Origin | None) -> None:
        if isinstance(tensor, Tensor):
            if origin is not None:
                self._origins[tensor] = origin._replace(version=_version(tensor))
            elif tensor in self._origins:
                del self._origins[tensor]

    def _origin(self, tensor: Tensor) -> _Origin | None:
        origin = self._origins.get(tensor)
        # What was done to it in place makes it another value.
        return origin if origin is not None and origin.version == _version(tensor) else None


def activations_after_norm_acts(model: nn.Module, *inputs: Any) -> list[tuple[str, str]]:
    """Run ``model(*inputs)`` and find activations of the very values that norm-acts return.

    It sees what runs, not what can be traced, so it holds for any model. Layers without activation
    (``apply_act=False``) count too.

    Returns:
        list: ``(name of the layer, name of the function)`` of every such call.
    """
    with Watcher(model) as watcher:
        model(*inputs)
    return [(a.layer, a.function) for a in watcher.activated if not a.through]


def _plain_name(function: Any) -> str:
    """``add`` for ``__iadd__``, ``__radd__``, ``add_`` and ``add``."""
    name = getattr(function, "__name__", "")
    bare = name.strip("_")
    if name.startswith("__") and bare[1:] in _SHIFTS and bare[0] in "ir":
        return bare[1:]
    return bare


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in arguments; parameters are constants."""
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _argument(args: Any, kwargs: dict[str, Any], position: int, keyword: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(keyword)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
