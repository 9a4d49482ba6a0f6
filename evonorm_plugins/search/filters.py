"""What refuses a candidate: no sense on one batch, too little learnt, gradients without bounds.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Section 4.4; :func:`trial`, which needs no network, is ours.
"""

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
    training = Training(graph, task, task.stability_anchor)
    model = training.trainer.model.train()
    images, labels = (part[: task.stability_batch] for part in next(training.data.train.batches(0)))
    images, labels = training.trainer.inputs(images), labels.to(training.device)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    with training.own_random_numbers():
        norms = gradient_ascent(
            lambda: nn.functional.cross_entropy(model(images), labels),
            weights,
            steps=task.stability_steps,
            lr=task.stability_lr,
            limit=task.stability_norm,
        )
    return norms[-1] <= task.stability_norm, norms


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
