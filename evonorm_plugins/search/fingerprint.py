"""What a layer does to a few fixed inputs: layers that do the same are one layer.

A structural digest (:meth:`evonorm_plugins.layers.graph.graph.Graph.digest`) knows few identities.
Here layers are compared by what they compute, so that all of them are known at once, those of
constants among them.
"""

import functools
import random

import torch

from evonorm_plugins.layers.graph import primitives

# Numbers of a fingerprint, and the difference in one of them from which on layers are two.
SIZE, TOLERANCE = 16, 1e-4

_CHANNELS, _GROUPS, _EPS = 4, 2, 1e-12
_SHAPES = ((3, _CHANNELS, 2, 3), (2, _CHANNELS, 3, 3))
# How far v0 and v1 are moved from where they start.
_MOVED = 0.25
# Relative change of an input, and that of the output from which on rounding decides it.
_NUDGE, _SENSITIVE = 1e-10, 1e-6


def fingerprints(graph, *, affine=True):
    """Fingerprints of a layer and of the three that signs make of it.

    A fingerprint is :data:`SIZE` numbers: random projections of the output and of the gradient of
    the input, in float64, on two batches and on their negatives. It is of the layer as it starts,
    and of the layer with v0 and v1 moved by up to a quarter, each channel of whose output is
    shifted and scaled to mean 0 and variance 1, as gamma and beta behind it can. So
    ``tanh(x) * v1 + v0`` is ``tanh(x)``: both start as the same network, and can be the same
    function ever after. ``0.5 * tanh(x)`` is not: it starts as another one.

    Args:
        affine: False tells layers apart that gamma and beta make equal.

    Returns:
        ``[of f(x), of -f(x), of f(-x), of -f(-x)]``. Convolutions before and after a layer absorb
        both signs, as their weights are distributed evenly around 0: trainings with these four
        differ by the draw of the weights alone. None where a value is not finite, where the output
        does not depend on the input, or where rounding decides it
        (``x / (mean_{w,h}(x) - mean_{w,h}(x))``).
    """
    probes = _probes()
    values = [probes["start"], probes["moved"]]
    nodes = graph.canonical().nodes
    if _sensitive(nodes, probes):
        return None
    xs = [[x.clone().requires_grad_() for x in probes["inputs"]] for _ in values]
    ys = [[_output(nodes, x, v) for x in own] for own, v in zip(xs, values, strict=True)]
    if not ys[0][0].requires_grad:
        return None
    if affine:
        ys[1] = _standardised(ys[1])
    weighted = sum((y * w).sum() for own in ys for y, w in zip(own, probes["weights"], strict=True))
    leaves = [x for own in xs for x in own]
    gradients = torch.autograd.grad(weighted, leaves, allow_unused=True, materialize_grads=True)
    half = len(_SHAPES)
    gradients = [gradients[: 2 * half], gradients[2 * half :]]
    output, gradient = (
        torch.stack(
            [torch.cat([t.flatten() for own in both for t in own[part]]) for part in _halves(half)]
        )
        for both in (ys, gradients)
    )
    output, gradient = _compressed(output.detach()), _compressed(gradient)
    if not (output.isfinite().all() and gradient.isfinite().all()):
        return None
    own, mirrored = (
        probes["projection"] @ torch.cat(parts, 1).flatten()
        for parts in ((output, gradient), (output.flip(0), -gradient.flip(0)))
    )
    return [f.tolist() for f in (own, -own, mirrored, -mirrored)]


def _halves(half):
    """Slices of what belongs to the inputs and to their negatives."""
    return slice(0, half), slice(half, 2 * half)


def _sensitive(nodes, probes):
    """Whether the output changes with an input's last digits, or is not finite."""
    with torch.no_grad():
        a, b = (
            _compressed(_output(nodes, x, probes["start"]))
            for x in (probes["inputs"][0], probes["nudged"])
        )
    return not (a - b).abs().max() <= _SENSITIVE


def _output(nodes, x, values):
    """The output of a graph's nodes, of the shape of ``x``."""
    found = [x, x.new_zeros(1, 1, 1, 1), *values]
    for op, *inputs in nodes:
        given = [found[i] for i in inputs]
        found.append(primitives.apply(op, *given, groups=_GROUPS, eps=_EPS))
    return found[-1].expand_as(x)


def _standardised(ys):
    """Each channel with mean 0 and variance 1 over all of them; a constant one with 0."""
    rows = torch.cat([y.transpose(0, 1).flatten(1) for y in ys], 1)
    shift = rows.mean(1)[:, None, None]
    scale = rows.std(1, correction=0).clamp(min=1e-12)[:, None, None]
    return [(y - shift) / scale for y in ys]


def _compressed(t):
    """Differences of large numbers count by their share, those of small ones as they are."""
    return t.sign() * t.abs().log1p()


@functools.lru_cache(maxsize=1)
def _probes():
    """The fixed inputs, the same on every machine: Python's random numbers, not torch's."""
    rng = random.Random(0)

    def drawn(*shape, draw=lambda: rng.gauss(0, 1)):
        return torch.tensor(_nested(shape, draw), dtype=torch.float64)

    # Of other scales, and with channels around other means.
    inputs = [
        scale * drawn(*shape) + drawn(1, _CHANNELS, 1, 1)
        for scale, shape in zip((1, 2.5), _SHAPES, strict=True)
    ]
    inputs += [-x for x in inputs]
    weights = [drawn(*shape) for shape in _SHAPES]
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    moves = [drawn(1, _CHANNELS, 1, 1, draw=lambda: rng.uniform(-_MOVED, _MOVED)) for _ in start]
    numbers = 2 * 2 * sum(x.numel() for x in inputs)
    return {
        "inputs": inputs,
        "nudged": inputs[0] * (1 + _NUDGE * drawn(*_SHAPES[0])),
        "weights": weights * 2,
        "start": [v.expand(1, _CHANNELS, 1, 1) for v in start],
        "moved": [v + move for v, move in zip(start, moves, strict=True)],
        "projection": drawn(SIZE, numbers) / numbers**0.5,
    }


def _nested(shape, draw):
    if not shape:
        return draw()
    return [_nested(shape[1:], draw) for _ in range(shape[0])]
