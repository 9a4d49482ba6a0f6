"""A layer graph as one module that follows the contract of every norm-activation layer."""

import contextlib

import torch

from evonorm_plugins import functional as F
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.formulas import channels
from evonorm_plugins.kernels.ops import move_average
from evonorm_plugins.layers import cross_replica
from evonorm_plugins.layers.base import Fused, check_positive_int
from evonorm_plugins.layers.batch import BatchDependent, CrossReplica
from evonorm_plugins.layers.graph import primitives
from evonorm_plugins.layers.graph.evaluate import compiled_nodes, constants, evaluate, program_of
from evonorm_plugins.layers.graph.fused import fused_formula
from evonorm_plugins.layers.graph.fused_apply import apply_formula
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL
from evonorm_plugins.layers.graph.structure import BATCH, CHANNELS, SPACE, axes_of
from evonorm_plugins.modes import compute_dtype, takes_plain_operations
from evonorm_plugins.statistics import AllReduceSum, update_moving_average

_BUFFERS = {"mean": "running_mean", "std": "running_var", "rms": "running_mean_square"}


class GraphNormAct(Fused, BatchDependent):
    """The layer of a graph, a channel-wise affine transform after it (paper, Section 3.1).

    Args:
        graph: a :class:`Graph`. Graphs with the same digest make the same layer.
        groups: of w,h,c/g; where it does not divide the channels, the next smaller number that does
            is used.
        eps: see :mod:`evonorm_plugins.layers.graph.primitives`.
        momentum: weight of the newest batch in moving statistics.
        impl: what computes. "auto": where the graph is one of the formulas that the fused operators
            compute (:mod:`evonorm_plugins.layers.graph.fused`), they do, as they do for that
            formula's own layer; else the nodes in plain torch. "torch": always the nodes. "cpu",
            "triton": those kernels.
        compiled: the nodes go through ``torch.compile``, one compilation for each number of
            channels. What is compiled cannot be differentiated twice. In a transform of
            ``torch.func``, with statistics of all ranks, and while precise statistics are computed,
            they do not.

    :attr:`computed_by` says which of these it is.

    Parameters ``v0`` (zeros) and ``v1`` (ones), ``(C,)``, are there where the graph uses them. For
    each aggregation over the batch there is a buffer, ``(C,)``, or ``(1,)`` where all channels have
    the same, with the number of its node in :meth:`Graph.canonical`: ``running_mean4`` from zeros,
    ``running_var4`` (of std) and ``running_mean_square4`` (of rms) from ones. It averages
    what is under the square root, biased, as the layers of the B series do; inference uses it. A
    batch whose statistic is not finite leaves it as it was. ``apply_act=False`` is the affine
    transform alone, with neither.

    Where nodes compute, all values between them are kept for the backward pass; fused operators
    keep what they do elsewhere. The other arguments and the errors raised are those of
    :class:`evonorm_plugins.NormAct`.

    Raises:
        ConfigError: no kernel computes the graph, and ``impl`` says that one should.
        TypeError: ``graph`` is not a :class:`Graph`.
    """

    def __init__(
        self,
        num_features,
        *,
        graph,
        apply_act=True,
        groups=32,
        eps=1e-5,
        momentum=0.1,
        impl="auto",
        compiled=False,
        device=None,
        dtype=None,
    ):
        if not isinstance(graph, Graph):
            raise TypeError(f"graph={graph!r} must be a Graph")
        options = {"device": device, "dtype": dtype}
        shared = {"eps": eps, "momentum": momentum, "impl": impl}
        super().__init__(num_features, apply_act=apply_act, **shared, **options)
        check_positive_int("groups", groups)
        if not isinstance(compiled, bool):
            raise ConfigError(f"compiled={compiled!r} must be True or False")
        self.groups, self.compiled = groups, compiled
        self.graph = graph.canonical()
        axes = axes_of(self.graph.nodes)
        self._program = program_of(self.graph) if apply_act else ()
        self._formula = fused_formula(self.graph) if apply_act else None
        self._constants = self._formula.constants() if self._formula else ()
        if apply_act and self._formula is None and impl not in ("auto", "torch"):
            raise ConfigError(
                f"impl={impl!r}: no kernel computes {self.graph}; 'auto' takes plain torch"
            )
        # Number of a node over the batch -> its buffer, its moment.
        self._moving = {
            k: (_BUFFERS[kind] + str(k), kind)
            for k, (op, inputs) in enumerate(self._program, len(INITIAL))
            for kind, over in [AGGREGATIONS.get(op, ("", ""))]
            # What is the same for all samples and places is the same in inference.
            if over == "b,w,h" and axes[inputs[0]] & (BATCH | SPACE)
        }
        for name, value in (("v0", 0.0), ("v1", 1.0)):
            used = apply_act and self.graph.uses(name)
            full = torch.full((num_features,), value, **options) if used else None
            self.register_parameter(name, None if full is None else torch.nn.Parameter(full))
        for k, (name, kind) in self._moving.items():
            size = num_features if axes[k] & CHANNELS else 1
            start = torch.zeros if kind == "mean" else torch.ones
            self.register_buffer(name, start(size, **options))
        self._broadcast = axes[-1] != BATCH | CHANNELS | SPACE
        self._observer = None

    @torch.no_grad()
    def reset_parameters(self):
        super().reset_parameters()
        moving = {name: kind != "mean" for name, kind in self._moving.values()}
        for name, value in {"v0": 0, "v1": 1, **moving}.items():
            if getattr(self, name) is not None:
                getattr(self, name).fill_(value)

    def options(self):
        return {
            "graph": self.graph,
            "groups": self.groups,
            "eps": self.eps,
            "momentum": self.momentum,
            "impl": self.impl,
            "compiled": self.compiled,
        }

    @property
    def computed_by(self):
        """What computes: "fused EvoNorm-S0" or another formula of the kernels, "torch.compile",
        "torch"; "fused affine" where no activation is applied."""
        if not self.apply_act:
            return "fused affine"
        if self._by_formula():
            return f"fused {self._formula}"
        return "torch.compile" if self.compiled else "torch"

    def _details(self):
        return [self.graph.digest()[:12], *super()._details()]

    def uses_batch(self):
        return bool(self._moving) and super().uses_batch()

    def moving_statistics(self):
        return dict(self._moving.values())

    @contextlib.contextmanager
    def observed(self, observer):
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def extra_repr(self):
        options = super().extra_repr().replace(f"graph={self.graph}, ", "")
        channels, _, rest = options.partition(", ")
        return f"{channels}, {self.graph}, {rest}, computed_by={self.computed_by}"

    def _by_formula(self):
        return self._formula is not None and self.impl != "torch"

    def _is_shared(self):
        """Whether others look at the statistics of this batch, or have their part in them."""
        others = self._observer is not None or self._statistics_group() is not None
        return self.uses_batch() and others

    def _norm_act(self, x, weight, bias):
        if self._by_formula():
            return self._by_kernel(x, weight, bias)
        z = x.to(compute_dtype(x))
        if self.compiled and not takes_plain_operations() and not self._is_shared():
            # Applied outside: what is compiled may keep its result, which a caller may overwrite.
            y = F.channel_affine(self._compiled(z), weight, bias)
            return y.to(x.dtype)
        from_batch = self._takes_from(x)

        def moment(k, value):
            return self._over_batch(*self._moving[k], value, z, from_batch)

        options = self._moving, self.groups, self.eps
        y = evaluate(self._program, z, self.v0, self.v1, moment, *options)
        if self._broadcast:
            y = y * torch.ones_like(z)
        y = torch.addcmul(channels(bias, z.dtype), y, channels(weight, z.dtype))
        return y.to(x.dtype)

    def _by_kernel(self, x, weight, bias):
        """The same by the fused operator that computes the graph's formula."""
        formula, given = self._formula, None
        name, _ = self._moving.get(formula.moving, (None, None))
        from_batch = name is not None and self._takes_from(x)
        if from_batch and self._observer is not None:
            self._observer(name, x)
        if name is not None and not from_batch:
            given = getattr(self, name).clone()  # as in _over_batch
        own = self._program, self._constants, x, self.v0, self.v1, self.groups, self.eps
        values = constants(*own) if self._constants else {}
        group = self._statistics_group() if from_batch else None
        options = {"groups": self.groups, "eps": self.eps, "impl": self.impl}
        y, moment = apply_formula(formula, x, weight, bias, values, given, group, **options)
        if from_batch:
            move_average(self._buffers[name], moment, self.momentum, self.impl)
        return y

    def _compiled(self, x):
        """What the nodes come to, ``(N, C, H, W)`` in the dtype of the statistics, compiled."""
        from_batch = self._takes_from(x)
        moving = tuple((k, kind) for k, (_, kind) in self._moving.items())
        given = None
        if not from_batch:
            buffers = (getattr(self, name) for name, _ in self._moving.values())
            given = [channels(b.clone()[None], x.dtype) for b in buffers]  # as in _over_batch
        own = self._program, moving, self.groups, self.eps, self.num_features
        y, moments = compiled_nodes(*own)(x, self.v0, self.v1, given)
        if from_batch:
            for (name, _), moment in zip(self._moving.values(), moments, strict=True):
                update_moving_average(getattr(self, name), moment.flatten(), self.momentum)
        return y

    def _over_batch(self, name, kind, value, x, from_batch):
        running = getattr(self, name)
        if from_batch:
            if self._observer is not None:
                self._observer(name, value.expand(x.shape[0], -1, *x.shape[2:]))
            moment = self._batch_moment(kind, value, x)
            update_moving_average(running, moment.flatten(), self.momentum)
        else:
            # A copy: kept for the backward pass, before which a batch may change the buffer.
            moment = channels(running.clone()[None], x.dtype)
        return moment

    def _batch_moment(self, kind, value, x):
        group = self._statistics_group()
        if group is None:
            return primitives.moment(kind, "b,w,h", value, self.groups)
        # Every rank counts as many times as x has elements for a channel, the value perhaps fewer.
        count = value.new_full((), x.shape[0] * x.shape[2] * x.shape[3])
        total = AllReduceSum.apply(count, group).clamp(min=1)
        own = max(1, value.shape[0] * value.shape[2] * value.shape[3])

        def mean(t):
            return AllReduceSum.apply(t.sum((0, 2, 3), keepdim=True) * (count / own / total), group)

        if kind == "std":
            return mean((value - mean(value)).square())
        return mean(value.square() if kind == "rms" else value)


class SyncGraphNormAct(CrossReplica, GraphNormAct):
    """:class:`GraphNormAct` with the statistics of all ranks; see :class:`SyncEvoNormB0`."""


cross_replica.COUNTERPARTS[GraphNormAct] = SyncGraphNormAct


def graph_layer(graph, num_features, *, cross_replica=False, **options):
    """The layer of a :class:`Graph`.

    Args:
        cross_replica: batch statistics are those of all ranks; see :class:`SyncGraphNormAct`.
        options: keyword arguments of :class:`GraphNormAct`.
    """
    kind = SyncGraphNormAct if cross_replica else GraphNormAct
    return kind(num_features, graph=graph, **options)


def load_layer(path, num_features, **options):
    """The layer of a graph's JSON file, as :meth:`Graph.save` writes it; see :func:`graph_layer`.

    Raises:
        GraphError: the file cannot be read or holds no graph.
    """
    return graph_layer(Graph.load(path), num_features, **options)
