"""What one process of a group does with the cases of a ``test_cross_replica.py``.

A case is the name of a layer, and ``(N, 4, ...)`` inputs and gradients of every rank.
"""

import torch

from evonorm_plugins import convert_cross_replica, get_norm_act


def build(name, dtype):
    if name.startswith("BatchNorm"):
        return getattr(torch.nn, name)(4, dtype=dtype)
    return get_norm_act(name, 4, dtype=dtype)


def draw_case(name, shapes, dtype=torch.float64):
    xs = [torch.randn(shape, dtype=dtype) * 2 + 1 for shape in shapes]
    return name, xs, [torch.randn_like(x) for x in xs]


def assert_as_one(case, found, *, by_position):
    """What :func:`outcome` gave on every rank is what the layer gives on the batch of all.

    ``by_position``: every position is a sample of its own there, so that images have any sizes.
    """

    def join(parts):
        if by_position:
            parts = [x.movedim(1, -1).reshape(-1, 4, 1, 1) for x in parts]
        return torch.cat(parts)

    name, xs, dys = case
    layer = build(name, xs[0].dtype)
    x = join(xs).requires_grad_()
    y = layer(x)
    dx, *parameters = torch.autograd.grad(y, [x, *layer.parameters()], join(dys))
    torch.testing.assert_close(join([f["y"] for f in found]), y)
    torch.testing.assert_close(join([f["gradients"][0] for f in found]), dx)
    for k, expected in enumerate(parameters, 1):
        # Local: the processes' gradients add up to those of the whole.
        torch.testing.assert_close(sum(f["gradients"][k] for f in found), expected)
    for f in found:
        torch.testing.assert_close(f["buffers"], dict(layer.named_buffers()))


def outcome(case, rank):
    """Output, gradients and buffers of a converted layer, on this rank's part."""
    name, xs, dys = case
    layer = convert_cross_replica(build(name, xs[0].dtype))
    x = xs[rank].clone().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], dys[rank])
    buffers = {k: v for k, v in layer.named_buffers()}
    return {"y": y.detach(), "gradients": gradients, "buffers": buffers}
