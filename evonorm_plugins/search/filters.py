"""What refuses a candidate: no sense on one batch, too little learnt, gradients without bounds.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Section 4.4, for :func:`quality` and :func:`stability`. The others are ours: they cost less and come
before.
"""

import dataclasses
import math

import torch
from torch import nn

from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.search.trainer import Training

# (N, C, H, W) of the batches that candidates are tried on.
SHAPE = (4, 8, 6, 6)


def trial(graph, *, seed=0):
    """Run a graph's layer, forward and backward, on a small random batch.

    Inputs are standard normal, with 4 groups of 2 channels, in training mode; v0 and v1 are as they
    start.

    Returns:
        None, or why the layer can be no good: ``"not finite"`` (a value of the output or of the
        gradient of the input is NaN or infinite), ``"constant"`` (the output does not change with
        the input beyond rounding), ``"flat"`` (it is the same at every position: a network with
        such layers sees nothing but means over whole images).
    """
    if not graph.depends_on_x():
        return "constant"
    generator = torch.Generator().manual_seed(seed)
    layer = GraphNormAct(SHAPE[1], graph=graph, groups=4)
    outputs = []
    for _ in range(2):
        x = torch.randn(SHAPE, generator=generator).requires_grad_()
        y = layer(x)
        (dx,) = torch.autograd.grad(y, x, torch.randn(SHAPE, generator=generator))
        if not (y.isfinite().all() and dx.isfinite().all()):
            return "not finite"
        outputs.append(y.detach())
    a, b = outputs
    scale = torch.maximum(a.abs().max(), b.abs().max())
    rounding = 1e-5 * scale  # a hundred times that of a sum of two values of that size
    if (a - b).abs().max() <= rounding:
        return "constant"
    return "flat" if (a - a[:, :, :1, :1]).abs().max() <= rounding else None


def propagation(graph, task):
    """Whether images and gradients go through each anchor as it is initialised, up to the first
    that they do not.

    It takes one step forward and backward, on the images of :func:`stability`. ``signal`` is how
    much of what the last layer of the graph gives differs between images: the deviation over them
    of its mean over space, over the root mean square of that, from 0 to 1. ``gradient`` is the norm
    of the gradient of the first convolution with weights over that of the last one.

    Returns:
        ``(passed, {anchor: {"signal": ..., "gradient": ...}})``; refused is a signal below
        ``task.propagation_signal``, and a gradient ratio outside of ``task.propagation_gradient``
        and 1 over that; either where it is not finite.

    Raises:
        ConfigError, DataError: as for :class:`evonorm_plugins.search.trainer.Training`.
    """
    found = {}
    for anchor in task.anchors:
        signal, ratio = _through(*_first_batch(graph, task, anchor))
        found[anchor] = {"signal": _or_none(signal), "gradient": _or_none(ratio)}
        lowest = task.propagation_gradient
        if not (signal >= task.propagation_signal and lowest <= ratio <= 1 / lowest):
            return False, found
    return True, found


def _through(training, loss):
    given = []
    layers = [m for m in training.trainer.model.modules() if isinstance(m, GraphNormAct)]
    for layer in layers:
        if layer.apply_act:
            layer.register_forward_hook(lambda layer, x, y: given.append(y.detach()))
    with training.own_random_numbers():
        gradients = torch.autograd.grad(loss(), _convolutions(training), materialize_grads=True)
    pooled = given[-1].double().mean((2, 3))
    signal = (pooled.var(0, correction=0).mean() / pooled.square().mean()).sqrt().item()
    first, last = (g.double().norm().item() for g in (gradients[0], gradients[-1]))
    return signal, first / last if last else math.nan


def _or_none(number):
    """JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else None


def ascent(graph, task):
    """The first ``task.ascent_steps`` steps of :func:`stability`, which refuse most of what all
    would; arguments, results and errors are its own."""
    return stability(graph, dataclasses.replace(task, stability_steps=task.ascent_steps))


def rungs(trainings, task, bars):
    """Train each anchor for as many steps as each of ``task.rungs`` says, one rung after the other,
    up to the first anchor that is worse than the bar: successive halving.

    Args:
        trainings: as for :func:`quality`, which goes on from there.
        bars: ``{str(rung): {anchor: lowest accuracy that goes on}}``; where there is none, all do.

    Returns:
        ``(passed, {str(rung): {anchor: accuracy from 0 to 1}})``. A loss that is not finite does
        not pass.
    """
    found, trainings = {}, _kept(trainings)
    for steps in task.rungs:
        own, lowest = found.setdefault(str(steps), {}), bars.get(str(steps), {})
        for anchor, training in trainings():
            finite = training.go_on(steps)
            own[anchor] = training.accuracy()
            if not finite or own[anchor] < lowest.get(anchor, 0):
                return False, found
    return True, found


def _kept(pairs):
    """A function that gives the pairs of an iterable as often as it is called."""
    pairs, seen = iter(pairs), []

    def again():
        yield from seen
        for pair in pairs:
            seen.append(pair)
            yield pair

    return again


def quality(trainings, task):
    """Train each anchor for ``task.quality_steps`` steps, up to the first that learns too little.

    The paper refuses a layer that is below 20% validation accuracy after 100 steps on any of them.

    Args:
        trainings: ``(anchor, Training)`` pairs, the cheapest first; those after the first that
            fails are not asked for. A training can go on from there.

    Returns:
        ``(passed, {anchor: accuracy from 0 to 1})``. A loss that is not finite fails whatever
        ``task.quality_accuracy`` is.
    """
    accuracies = {}
    for anchor, training in trainings:
        finite = training.go_on(task.quality_steps)
        accuracies[anchor] = training.accuracy()
        if not finite or accuracies[anchor] < task.quality_accuracy:
            return False, accuracies
    return True, accuracies


def stability(graph, task):
    """Gradient ascent on the norm of the gradient; see :func:`gradient_ascent`.

    The network is ``task.stability_anchor`` as it is initialised for training, in training mode;
    the weights are those of all convolutions; the loss is that of the first
    ``task.stability_batch`` images of the training, the same in every step. The paper ascends
    for 100 steps and does not say on which network and images and at what rate: one anchor, 16
    images and the rate of the training, 0.1, are ours.

    Returns:
        ``(passed, norms)``: whether no norm exceeds ``task.stability_norm``, and the norms.

    Raises:
        ConfigError, DataError: as for :class:`evonorm_plugins.search.trainer.Training`.
    """
    training, loss = _first_batch(graph, task, task.stability_anchor)
    with training.own_random_numbers():
        norms = gradient_ascent(
            loss,
            _convolutions(training),
            steps=task.stability_steps,
            lr=task.stability_lr,
            limit=task.stability_norm,
        )
    return norms[-1] <= task.stability_norm, norms


def _first_batch(graph, task, anchor):
    """A training that has not begun, and what gives the loss of its first images."""
    training = Training(graph, task, anchor)
    model = training.trainer.model.train()
    images, labels = (part[: task.stability_batch] for part in next(training.data.train.batches(0)))
    images, labels = training.trainer.inputs(images), labels.to(training.device)
    return training, lambda: nn.functional.cross_entropy(model(images), labels)


def _convolutions(training):
    return [m.weight for m in training.trainer.model.modules() if isinstance(m, nn.Conv2d)]


def gradient_ascent(loss, weights, *, steps, lr, limit=math.inf):
    """Change weights so that the gradient of a loss with respect to them grows.

    In every step ``w += lr * d||g|| / dw``, with ``g = dloss / dw`` and the Euclidean norm over all
    weights together; the derivative is the true one, of second order. The direction is not
    normalised, so that what is unstable runs away within a few steps.

    Args:
        loss: gives the loss, a scalar, at what the weights are when it is called.
        weights: tensors that require gradients; they are changed in place.
        limit: it ends after the first norm above it.

    Returns:
        The norms ``||g||``: before the first step and after every one, ``steps + 1`` unless it
        ended earlier, which an infinite one does as well. One that is NaN is given as infinite.
    """
    norms = []
    for step in range(steps + 1):
        gradients = torch.autograd.grad(loss(), weights, create_graph=True, materialize_grads=True)
        norm = _norm(gradients)
        norms.append(norm.item() if norm.isfinite() else math.inf)
        if norms[-1] > limit or math.isinf(norms[-1]) or step == steps:
            break
        if not norm.requires_grad:  # it is the same wherever the weights go
            break
        directions = torch.autograd.grad(norm, weights, materialize_grads=True)
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=lr)
    return norms


def _norm(tensors):
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
