"""What a fraction of a second shows of a candidate, before any network is trained."""

import torch

from evonorm_plugins.layers.graph.module import GraphNormAct

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
