"""A forward without some of its activations, in place of the one that a module's class has.

The module stays what it was, an instance of its class with its children, parameters and hooks; its
class becomes a subclass whose forward is the traced one. The code is kept with the class, so that
``pickle`` can make the class again.
"""

import importlib
import linecache
from types import CodeType, ModuleType

from evonorm_plugins.conversion import gates
from evonorm_plugins.conversion.tracing import ShallowTracer, trace
from evonorm_plugins.errors import ConvertError

_CLASSES = {}  # (class, sources) -> subclass


def forward_without(module, path, sites, calls):
    """Source and globals of ``module.forward`` without the activations at ``sites``.

    Args:
        path: of the module, for messages.
        sites: calls of activations within the forward, each replaced by its input.
        calls: arguments that forward is called with, see :class:`ShallowTracer`.

    Raises:
        ConvertError: the forward cannot be traced by itself.
    """
    before = dict(vars(module))
    graph, reason = trace(ShallowTracer(calls), module)
    changed = sorted(n for n, v in vars(module).items() if n not in before or v is not before[n])
    if graph is not None and changed:
        # Neither is in the graph.
        made = changed[0].startswith("_tensor_constant")
        reason = "it makes tensors of its own" if made else f"it changes its own {changed[0]}"
        graph = None
    modules = dict(module.named_modules())
    wanted = {(site.op, site.target, site.index) for site in sites}
    found = []
    if graph is not None:
        found = [node for node in graph.nodes if _key(node) in wanted]
        reason = "its activations are not found again"
    if len(found) < len(wanted):
        names = sorted({str(getattr(site.target, "__name__", site.target)) for site in sites})
        raise ConvertError(
            f"cannot take {', '.join(names)} out of the forward of {path or 'the model'} "
            f"({type(module).__name__}): {reason}"
        )
    for node in found:
        inputs = node.all_input_nodes
        node.replace_all_uses_with(gates.gated_input(node, modules) or inputs[0])
        _erase(graph, node)
    code = graph.python_code("self")
    used = {name for block in _blocks(code.src) for name in block.co_names}
    return code.src, {name: value for name, value in code.globals.items() if name in used}


def _blocks(source):
    """The code of ``source`` and of the functions in it."""
    code = compile(source, "<forward>", "exec")
    return [code, *(constant for constant in code.co_consts if isinstance(constant, CodeType))]


def _erase(graph, node):
    """Remove a node and what was computed for it alone, the gate of a gated input."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for source in inputs:
        if not source.users and source.op in ("call_function", "call_method", "call_module"):
            _erase(graph, source)


def _key(node):
    site = node.meta["site"]
    return (site.op, site.target, site.index)


def give_forward(module, codes):
    """Make ``module`` run other code.

    Args:
        codes: ``{"train": (source, globals), "eval": (source, globals)}``, or one of the two for a
            forward that runs in that mode only.
    """
    train, evaluate = (codes.get(m) or next(iter(codes.values())) for m in ("train", "eval"))
    sources = (train[0], evaluate[0])
    names = {name: _importable(value) for name, value in {**evaluate[1], **train[1]}.items()}
    module.__class__ = _subclass(type(module), sources, tuple(sorted(names.items(), key=_first)))


def _subclass(base, sources, names):
    # Importable values by name, so that a copy or a pickle has the class of its original.
    key = (base, sources, tuple((n, v if isinstance(v, tuple) else id(v)) for n, v in names))
    if key not in _CLASSES:
        members = {
            "__doc__": f"{base.__name__} of a converted model.",
            "__module__": base.__module__,
            "__reduce_ex__": _reduce,
            "converted": (base, sources, names),
        }
        train, evaluate = (_compile(source, names) for source in sources)
        members["forward"] = train
        if sources[0] != sources[1]:
            members.update(forward=_by_mode, _train_forward=train, _eval_forward=evaluate)
        _CLASSES[key] = type(f"Converted{base.__name__}", (base,), members)
    return _CLASSES[key]


def _by_mode(self, *args, **kwargs):
    return (self._train_forward if self.training else self._eval_forward)(*args, **kwargs)


def _compile(source, names):
    # As an entry of linecache, tracebacks and debuggers show the code.
    file = f"<converted forward {len(_CLASSES)}.{hash(source) & 0xFFFFFF:x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = {name: _resolve(value) for name, value in names}
    exec(compile(source, file, "exec"), namespace)
    return namespace["forward"]


def _importable(value):
    """``("import", module, name)`` of what can be had by it, else the value itself."""
    if isinstance(value, ModuleType):
        return ("import", value.__name__, "")
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    for candidate in (name, getattr(value, "__name__", None)):
        if isinstance(module, str) and isinstance(candidate, str):
            found = ("import", module, candidate)
            try:
                if _resolve(found) is value:
                    return found
            except (ImportError, AttributeError):
                continue
    return value


def _resolve(value):
    if not (isinstance(value, tuple) and value[:1] == ("import",)):
        return value
    found = importlib.import_module(value[1])
    for part in filter(None, value[2].split(".")):
        found = getattr(found, part)
    return found


def _reduce(self, protocol):
    reduced = super(type(self), self).__reduce_ex__(protocol)
    return (_make, type(self).converted, *reduced[2:])


def _make(base, sources, names):
    cls = _subclass(base, sources, names)
    return cls.__new__(cls)


def _first(item):
    return item[0]
