"""The values of a layer graph's nodes, as they are and compiled."""

import functools
import types

import torch

from evonorm_plugins.formulas import channels
from evonorm_plugins.layers.graph import primitives
from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL
from evonorm_plugins.modes import compute_dtype

_ZERO = INITIAL.index("zero")
compile_function = torch.compile
# Operations of a program beside those of graphs, the same function but for what costs time.
_SHORTCUTS = {"relu": torch.relu, "quotient": torch.div}


def program_of(graph):
    """``((operation, inputs), ...)`` of the nodes from number 4 on."""
    # Values that are at least sqrt(eps), so that division need not look.
    apart = set()
    program = []
    for k, (op, *inputs) in enumerate(graph.nodes, len(INITIAL)):
        if op.startswith(("std", "rms")) or (op == "max" and apart & set(inputs)):
            apart.add(k)
        if op == "div" and inputs[1] in apart:
            op = "quotient"
        if op == "max" and _ZERO in inputs:
            op, inputs = "relu", [i for i in inputs if i != _ZERO]
        program.append((op, tuple(inputs)))
    return tuple(program)


def evaluate(program, x, v0, v1, moment, moving, groups, eps):
    """The output of a program, ``(N, C, H, W)`` or what broadcasts to it.

    Args:
        x: ``(N, C, H, W)`` in the dtype of the statistics.
        v0, v1: ``(C,)``, or None where the program does not use them.
        moment: ``moment(node, value)`` gives what is under the square root of a node over the
            batch, or the mean.
        moving: numbers of those nodes.
    """
    values = [x, *_initial(x, v0, v1, x.dtype)]
    for k, (op, inputs) in enumerate(program, len(INITIAL)):
        given = [values[i] for i in inputs]
        if k in moving:
            kind, _ = AGGREGATIONS[op]
            values.append(primitives.aggregation(kind, moment(k, *given), eps))
        else:
            values.append(_applied(op, given, groups, eps))
    return values[-1]


def constants(program, numbers, x, v0, v1, groups, eps):
    """``{number: (C,)}`` of nodes that are made of zero, v0 and v1 alone.

    Args:
        x: ``(N, C, H, W)`` in any dtype.
    """
    dtype = compute_dtype(x)
    vectors = {INITIAL.index("v0"): v0, INITIAL.index("v1"): v1}
    found = {}

    def value(k):
        if k in found:
            return found[k]
        if k < len(INITIAL):
            found.update(enumerate(_initial(x, v0, v1, dtype), 1))
        else:
            op, inputs = program[k - len(INITIAL)]
            found[k] = _applied(op, [value(i) for i in inputs], groups, eps)
        return found[k]

    def vector(k):
        if k in vectors:
            return vectors[k].to(dtype)
        return value(k).expand(1, x.shape[1], 1, 1).flatten()

    return {k: vector(k) for k in numbers}


def _initial(x, v0, v1, dtype):
    """zero, v0 and v1."""
    vectors = (None if v is None else channels(v[None], dtype) for v in (v0, v1))
    return x.new_zeros(1, 1, 1, 1, dtype=dtype), *vectors


def _applied(op, given, groups, eps):
    if op in _SHORTCUTS:
        return _SHORTCUTS[op](*given)
    return primitives.apply(op, *given, groups=groups, eps=eps)


@functools.cache
def compiled_nodes(program, moving, groups, eps, num_features):
    """:func:`evaluate` through ``torch.compile``, shared by all layers that are the same.

    Args:
        moving: ``((node, moment), ...)``.
        num_features: channels of x; each number of them is compiled by itself.

    Returns:
        ``f(x, v0, v1, moments)``: the output, and the moments of x in order of ``moving``, which
        are those given where ``moments`` is not None.
    """

    def nodes(x, v0, v1, moments):
        found = []

        def moment(k, value):
            if moments is not None:
                found.append(moments[len(found)])
            else:
                found.append(primitives.moment(dict(moving)[k], "b,w,h", value, groups))
            return found[-1]

        numbers = [k for k, _ in moving]
        y = evaluate(program, x, v0, v1, moment, numbers, groups, eps)
        return y * torch.ones_like(x), [m.detach() for m in found]

    # A code object of its own: what is compiled, and how often it may be, is counted by code.
    own = types.FunctionType(
        nodes.__code__.replace(), globals(), nodes.__name__, None, nodes.__closure__
    )
    return compile_function(own, dynamic=True)
