"""A layer graph as one module that follows the contract of every norm-activation layer."""

import contextlib

import torch

from evonorm_plugins.formulas import channels
from evonorm_plugins.layers import cross_replica
from evonorm_plugins.layers.base import check_positive_int
from evonorm_plugins.layers.batch import BatchDependent, CrossReplica
from evonorm_plugins.layers.graph import primitives
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL
from evonorm_plugins.layers.graph.structure import BATCH, CHANNELS, SPACE, axes_of
from evonorm_plugins.modes import compute_dtype
from evonorm_plugins.statistics import AllReduceSum, update_moving_average

_BUFFERS = {"mean": "running_mean", "std": "running_var", "rms": "running_mean_square"}


class GraphNormAct(BatchDependent):
    """The layer of a graph, a channel-wise affine transform after it (paper, Section 3.1).

    Args:
        graph: a :class:`Graph`. Graphs with the same digest make the same layer.
        groups: of w,h,c/g; where it does not divide the channels, the next smaller number that does
            is used.
        eps: see :mod:`evonorm_plugins.layers.graph.primitives`.
        momentum: weight of the newest batch in moving statistics.

    Parameters ``v0`` (zeros) and ``v1`` (ones), ``(C,)``, are there where the graph uses them. For
    each aggregation over the batch there is a buffer, ``(C,)``, or ``(1,)`` where all channels have
    the same, with the number of its node in :meth:`Graph.canonical`: ``running_mean4`` from zeros,
    ``running_var4`` (of std) and ``running_mean_square4`` (of rms) from ones. It averages
    what is under the square root, biased, as the layers of the B series do; inference uses it. A
    batch whose statistic is not finite leaves it as it was. ``apply_act=False`` is the affine
    transform alone, with neither.

    Unlike EvoNorms, all values between the nodes are kept for the backward pass. The other
    arguments and the errors raised are those of :class:`evonorm_plugins.NormAct`.

    Raises:
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
        device=None,
        dtype=None,
    ):
        if not isinstance(graph, Graph):
            raise TypeError(f"graph={graph!r} must be a Graph")
        options = {"device": device, "dtype": dtype}
        super().__init__(num_features, apply_act=apply_act, eps=eps, momentum=momentum, **options)
        check_positive_int("groups", groups)
        self.groups = groups
        self.graph = graph.canonical()
        axes = axes_of(self.graph.nodes)
        self._program = _program(self.graph) if apply_act else ()
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
        }

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
        return f"{channels}, {self.graph}, {rest}"

    def _norm_act(self, x, weight, bias):
        z = x.to(compute_dtype(x))
        from_batch = self._takes_from(x)
        values = [z, z.new_zeros(1, 1, 1, 1)]
        for v in (self.v0, self.v1):
            values.append(None if v is None else channels(v[None], z.dtype))
        for k, (op, inputs) in enumerate(self._program, len(INITIAL)):
            given = [values[i] for i in inputs]
            if k in self._moving:
                values.append(self._over_batch(*self._moving[k], *given, z, from_batch))
            elif op in _SHORTCUTS:
                values.append(_SHORTCUTS[op](*given))
            else:
                values.append(primitives.apply(op, *given, groups=self.groups, eps=self.eps))
        y = values[-1]
        if self._broadcast:
            y = y * torch.ones_like(z)
        y = torch.addcmul(channels(bias, z.dtype), y, channels(weight, z.dtype))
        return y.to(x.dtype)

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
        return primitives.aggregation(kind, moment, self.eps)

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

# Operations of a program beside those of graphs, the same function but for what costs time.
_SHORTCUTS = {"relu": torch.relu, "quotient": torch.div}


def _program(graph):
    """``((operation, inputs), ...)`` of the nodes from number 4 on."""
    # Values that are at least sqrt(eps), so that division need not look.
    apart = set()
    program = []
    for k, (op, *inputs) in enumerate(graph.nodes, len(INITIAL)):
        if op.startswith(("std", "rms")) or (op == "max" and apart & set(inputs)):
            apart.add(k)
        if op == "div" and inputs[1] in apart:
            op = "quotient"
        if op == "max" and INITIAL.index("zero") in inputs:
            op, inputs = "relu", [i for i in inputs if i != INITIAL.index("zero")]
        program.append((op, tuple(inputs)))
    return tuple(program)


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
