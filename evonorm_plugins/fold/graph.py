"""The data flow of a model: which layer reads what another one writes."""

import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from evonorm_plugins import layers
from evonorm_plugins.conversion.tracing import autowrapped_functions
from evonorm_plugins.fold import absorb
from evonorm_plugins.fold.affine import MatrixOnly, is_frozen_batch_norm
from evonorm_plugins.fold.ways import IDENTITIES, is_shape_query, way_through

# Modules of (N, C, L), and those that give what they take, or a tensor of as many dimensions.
_OF_SEQUENCES = (nn.Conv1d, nn.ConvTranspose1d, nn.AvgPool1d, nn.MaxPool1d)
_OF_SEQUENCES += (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
_OF_ONE_SHAPE = (
    *(layers.NormAct, layers.ConditionalNormAct, nn.modules.batchnorm._NormBase, nn.GroupNorm),
    *(*IDENTITIES, nn.Linear, nn.ReLU, nn.SiLU),
)
_FUNCTIONS_OF_ONE_SHAPE = {operator.add, operator.iadd, torch.add, torch.relu, F.relu, F.silu}


class CannotFoldError(Exception):
    """Why a transform stays where it is."""


class Readers:
    """The layers that read, in the end, what a node writes.

    Attributes:
        layers: ``{path: convolution or linear layer}``.
        no_shift: None, or why a shift of channels is not the same before them as after the node.
        signed: whether a negative scale is.
        dims: number of dimensions of what the node writes, known or assumed; None for any.
    """

    def __init__(self, dims):
        self.layers, self.no_shift, self.signed, self.dims = {}, None, True, dims

    def assume(self, dims, node):
        """Take what is read to have ``dims`` dimensions, as ``node`` does."""
        if self.dims not in (None, dims):
            raise CannotFoldError(f"{_name(node)} does not read it channel by channel")
        self.dims = dims


class _Tracer(fx.Tracer):
    def __init__(self):
        super().__init__(autowrap_functions=autowrapped_functions())

    def is_leaf_module(self, module, name):
        own = (layers.NormAct, layers.ConditionalNormAct, nn.modules.batchnorm._BatchNorm)
        if isinstance(module, own) or is_frozen_batch_norm(module):
            return True
        return super().is_leaf_module(module, name)


class ModelGraph:
    """The operations of ``model`` in the order they run, and the modules behind them.

    Raises:
        ValueError: torch.fx cannot follow the data; says where and why.
    """

    def __init__(self, model):
        tracer = _Tracer()
        try:
            # A layer by itself has nothing around it.
            self.nodes = [] if tracer.is_leaf_module(model, "") else tracer.trace(model).nodes
        except Exception as error:
            inside = next(reversed(tracer.module_stack), "") if tracer.module_stack else ""
            where = f"{type(model).__name__}{inside and f' in {inside!r}'}"
            raise ValueError(
                f"torch.fx cannot trace {where}: {error}; fold the parts of the model that it can "
                "trace, such as a backbone"
            ) from error
        self._modules = dict(model.named_modules())
        self._calls = Counter(id(self.module(n)) for n in self.nodes if n.op == "call_module")
        # Parameters and buffers that are read past the module they belong to.
        read = [n.target for n in self.nodes if n.op == "get_attr"]
        self._read = {id(operator.attrgetter(path)(model)) for path in read}

    def module(self, node):
        """The module that ``node`` calls, or None."""
        return self._modules[node.target] if node.op == "call_module" else None

    def check_alone(self, node):
        """Raise CannotFoldError where more than ``node`` depends on the module it calls."""
        module = self.module(node)
        calls = self._calls[id(module)]
        if calls > 1:
            raise CannotFoldError(f"{node.target} is called {calls} times")
        if not self._read.isdisjoint(map(id, (*module.parameters(), *module.buffers()))):
            raise CannotFoldError(f"a parameter of {node.target} is used elsewhere too")
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        if hooks or parametrize.is_parametrized(module):
            raise CannotFoldError(f"{node.target} has hooks or parametrizations")

    def producer(self, node):
        """The convolution or linear layer whose output goes to ``node`` alone: path, module.

        Raises:
            CannotFoldError: there is none, or it cannot be changed.
        """
        before = node
        while before is node or type(self.module(before)) in (*IDENTITIES, MatrixOnly):
            before = before.args[0] if before.args else None
            if not isinstance(before, fx.Node):
                raise CannotFoldError("its input is not the output of a layer")
            if len(_readers_of(before)) > 1:
                raise CannotFoldError(f"the output of {_name(before)} has other readers")
        return before.target, self._absorbing(before)

    def dims(self, node):
        """Number of dimensions of what ``node`` writes, None where the graph does not tell."""
        while isinstance(node, fx.Node):
            module, before = self.module(node), node.args[0] if node.args else None
            name, way = type(module).__name__, way_through(node, before, module)
            if isinstance(module, MatrixOnly):
                return 2
            if way is not None and way.flattens:
                return 2 if way.dims is None or way.dims == self.dims(before) else None
            of_images = name.endswith(("2d", "3d")) and not isinstance(module, IDENTITIES)
            if of_images or isinstance(module, _OF_SEQUENCES):
                return 2 + int(name[-2])
            if not (isinstance(module, _OF_ONE_SHAPE) or node.target in _FUNCTIONS_OF_ONE_SHAPE):
                return None
            node = before
        return None

    def readers(self, node, channels):
        """The :class:`Readers` of what ``node`` writes, ``(N, channels, ...)``.

        Raises:
            CannotFoldError: not all that read it are layers that can be changed.
        """
        dims = self.dims(node)
        found = Readers(dims)
        self._follow(node, channels, dims == 2, found, {node})
        if not found.layers:
            raise CannotFoldError("no layer reads its output")
        return found

    def _follow(self, node, channels, flat, found, carried):
        """Add to ``found`` what reads ``node``, which is ``(N, C * P)`` where ``flat``."""
        for user in _readers_of(node):
            way = way_through(user, node, self.module(user), 2 if flat else found.dims)
            if way is None:
                layer = found.layers[user.target] = self._absorbing(user)
                if not flat:
                    found.assume(absorb.dims(layer), user)
                _check_reads_channels(user, layer, channels, flat or found.dims == 2)
                reason = absorb.why_no_shift(layer)
                found.no_shift = f"{user.target} {reason}" if reason else found.no_shift
                continue
            # Where two ways meet, both factors would be scaled.
            if user in carried or (flat and not way.any_shape):
                raise CannotFoldError(f"{_name(user)} reads its output")
            carried.add(user)
            if way.dims is not None:
                found.assume(way.dims, user)
            if not way.shift:
                found.no_shift = f"{_name(user)} comes between"
            found.signed &= way.signed
            self._follow(user, channels, flat or way.flattens, found, carried)

    def _absorbing(self, node):
        layer = self.module(node)
        if type(layer) not in absorb.LAYERS:
            raise CannotFoldError(f"{_name(node)} is no convolution or linear layer")
        self.check_alone(node)
        return layer


def _readers_of(node):
    return [user for user in node.users if not is_shape_query(user)]


def _name(node):
    if node.op == "output":
        return "the model's output"
    if node.op == "placeholder":
        return f"the model's input {node.target}"
    return node.target if node.op == "call_module" else node.name


def _check_reads_channels(node, layer, channels, flat):
    linear = isinstance(layer, nn.Linear)
    found = absorb.in_channels(layer)
    if linear != flat or (found % channels if linear else found != channels):
        raise CannotFoldError(f"{node.target} does not read it channel by channel")
