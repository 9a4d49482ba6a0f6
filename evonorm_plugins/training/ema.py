"""The average of a module's weights over the steps of training."""

import copy

import torch


class EMA:
    """Exponential moving average of a module, moving statistics of its norms included.

    Averaging the weights without the statistics that belong to them is a well-known mistake: they
    are those of another network. Singular vectors and counters are copied.

    Args:
        decay: how much of the average is kept at a step.
        statistics_of: gives the names of the buffers of one module that are averaged, too:
            :func:`evonorm_plugins.layers.moving_statistics_of`.
        start: before this step the average is the module itself.
        warmup: whether the first steps count less, as TensorFlow's ``num_updates`` makes them:
            the decay of step t is at most ``(1 + t) / (10 + t)``.
    """

    def __init__(self, module, decay, statistics_of, *, start=0, warmup=False):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.start, self.warmup = decay, start, warmup
        ours, theirs = self.module.state_dict(), module.state_dict()
        averaged = {k for k, _ in module.named_parameters()}
        for name, layer in module.named_modules():
            averaged |= {f"{name}.{key}".strip(".") for key in statistics_of(layer)}
        # These tensors are the modules' own: both are changed in place, never replaced.
        self.averaged = [(ours[k], theirs[k]) for k in theirs if k in averaged]
        self.copied = [(ours[k], theirs[k]) for k in theirs if k not in averaged]

    @torch.no_grad()
    def update(self, step):
        """Take in the weights after step number ``step``, counted from 1."""
        decay = self.decay if step > self.start else 0.0
        if self.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        ours, theirs = zip(*self.averaged, strict=True)
        torch._foreach_lerp_(list(ours), list(theirs), 1 - decay)
        for mine, other in self.copied:
            mine.copy_(other)
