"""Parameters and multiply-adds of a model.

A fused multiply-add counts as one. Convolutions and matrix products are counted by
``torch.utils.flop_counter``. Norms count as in fvcore: batch normalization 2 for each element, any
other 5. Norm-activation layers count by their operations: one for each element that an operation
writes or a reduction reads. Separate activations, additions and pooling count nothing.
"""

import copy
from contextlib import ExitStack

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from evonorm_plugins.convert import kinds
from evonorm_plugins.layers import NormAct

_ELEMENTWISE = {
    *("add", "addcmul", "div", "lerp", "maximum", "mul", "reciprocal", "relu", "rsqrt", "sigmoid"),
    *("silu", "sqrt", "square", "sub", "tanh", "pow"),
}
_REDUCTIONS = {"mean", "sum", "var", "var_mean"}


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model, *inputs):
    """Multiply-adds of ``model(*inputs)`` in evaluation mode, on the device of the inputs.

    Inputs on the ``meta`` device need neither memory nor time.
    """
    device = next(t for t in _tensors(inputs)).device
    model = copy.deepcopy(model).eval().to(device)
    norms = _NormCounter()
    for module in model.modules():
        if isinstance(module, NormAct):
            if hasattr(module, "impl"):
                module.impl = "torch"  # fused kernels do not show their operations
            module.register_forward_pre_hook(norms.enter)
            module.register_forward_hook(norms.leave)
        elif kinds.is_norm(module):
            module.register_forward_hook(norms.count_norm)
    matrices = FlopCounterMode(display=False)
    with ExitStack() as stack:
        for context in (torch.no_grad(), matrices, norms):
            stack.enter_context(context)
        model(*inputs)
    return matrices.get_total_flops() // 2 + norms.total


class _NormCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.total = 0
        self.inside = 0

    def enter(self, module, inputs):
        self.inside += 1

    def leave(self, module, inputs, output):
        self.inside -= 1

    def count_norm(self, module, inputs, output):
        batch_norm = hasattr(module, "running_var") and not hasattr(module, "num_groups")
        self.total += (2 if batch_norm else 5) * output.numel()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if self.inside and name in _ELEMENTWISE:
            self.total += output.numel()
        elif self.inside and name in _REDUCTIONS:
            self.total += args[0].numel()
        return output


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
