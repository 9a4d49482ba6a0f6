"""Multiply-adds and element-wise work of a model, by the operations that it runs.

A fused multiply-add counts as one, whatever matrix it belongs to. An element-wise operation is one
for each element that it writes (an affine transform is one multiply-add), a reduction one for each
that it reads; moving data costs nothing. Batch normalization is 2 an element, group and layer
normalization 5: fvcore's numbers, with which the tables of detection papers are made.
"""

import copy
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evonorm_plugins.layers import NormAct
from evonorm_plugins.layers.base import Fused

# What norm-activation layers consist of: named as in torch.ops.aten.
ELEMENTWISE = (
    "abs", "add", "addcmul", "clamp", "div", "exp", "lerp", "log", "lt", "maximum", "mul", "neg",
    "relu", "rsqrt", "sigmoid", "sign", "silu", "sqrt", "square", "sub", "tanh",
)  # fmt: skip
REDUCTIONS = ("mean", "sum", "var", "var_mean")
FREE = ("clone", "isfinite", "ones_like", "unflatten", "where")

_OTHER_ELEMENTWISE = (
    "clamp_max", "clamp_min", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "minimum", "mish", "pow", "prelu", "reciprocal", "softplus",
)  # fmt: skip
_OTHER_REDUCTIONS = (
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_softmax", "_log_softmax", "amax", "argmax",
)  # fmt: skip
_OTHER_FREE = (
    "_to_copy", "_unsafe_view", "arange", "cat", "constant_pad_nd", "copy", "empty", "empty_like",
    "full", "full_like", "index_select", "native_dropout", "new_zeros", "ones", "scalar_tensor",
    "zeros", "zeros_like",
)  # fmt: skip
_NORMS = {"native_batch_norm": 2, "native_group_norm": 5, "native_layer_norm": 5}
# Number of dimensions of the window, of which one size may stand for all.
_WINDOWS = {
    "avg_pool2d": 2,
    "max_pool2d_with_indices": 2,
    "avg_pool3d": 3,
    "max_pool3d_with_indices": 3,
}


class FlopCount(NamedTuple):
    """Operations of one forward pass in inference.

    Fields:
        matrix: multiply-adds of convolutions, linear layers and other matrix products.
        elementwise: those of everything else, normalization and activations above all.
        unknown: names of operations that are in neither number.
    """

    matrix: int
    elementwise: int
    unknown: tuple[str, ...]

    @property
    def total(self) -> int:
        """All operations."""
        return self.matrix + self.elementwise


def count_flops(model: nn.Module, *inputs: torch.Tensor | list[Any]) -> FlopCount:
    """The :class:`FlopCount` of ``model(*inputs)`` in eval mode.

    Of tensors nothing is computed: shapes pass through a copy without values. Lists of tensors,
    which detectors are given, are computed with, for what follows depends on values. A gamma of 1
    with a beta of 0 that :func:`evonorm_plugins.fold_for_inference` left behind costs nothing.

    Args:
        inputs: tensors, whose shapes and dtypes matter, or lists of them.

    Raises:
        NotImplementedError: what the model does depends on the values it computes.
    """
    # Imported late, for it imports Triton.
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    model, arguments = copy.deepcopy(model).eval(), list[Any](inputs)
    if all(isinstance(x, torch.Tensor) for x in arguments):
        model, arguments = model.to("meta"), [x.to("meta") for x in arguments]
    for module in model.modules():
        if isinstance(module, Fused):
            module.impl = "torch"  # The operations of the formula, not a kernel.
    matrix, other = FlopCounterMode(display=False), _Elementwise(model, flop_registry)
    with torch.no_grad(), matrix, other:
        model(*arguments)
    # torch counts 2 for a multiply-add.
    return FlopCount(matrix.get_total_flops() // 2, other.count, tuple(sorted(other.unknown)))


class _Elementwise(TorchDispatchMode):
    """Counts what is not ``counted_elsewhere`` while it is active."""

    def __init__(self, model: nn.Module, counted_elsewhere: Collection[Any]) -> None:
        super().__init__()
        self.counted_elsewhere = counted_elsewhere
        self.count = 0
        self.unknown: set[str] = set()
        self.inside_folded = False
        for layer in model.modules():
            if isinstance(layer, NormAct) and layer.affine_is_folded:
                layer.register_forward_pre_hook(lambda *_: self._enter(True))
                layer.register_forward_hook(lambda *_: self._enter(False))

    def _enter(self, inside: bool) -> None:
        self.inside_folded = inside

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        is_counted = function.overloadpacket in self.counted_elsewhere
        is_folded = self.inside_folded and function.overloadpacket is torch.ops.aten.addcmul
        if not (is_counted or is_folded or function.is_view):
            self._add(function.overloadpacket.__name__.rstrip("_"), args, result)
        return result

    def _add(self, name: str, args: Any, result: Any) -> None:
        if name in ELEMENTWISE or name in _OTHER_ELEMENTWISE:
            self.count += result.numel()
        elif name in REDUCTIONS or name in _OTHER_REDUCTIONS:
            self.count += args[0].numel()
        elif name in _NORMS:
            self.count += _NORMS[name] * args[0].numel()
        elif name in _WINDOWS:
            written = result[0] if isinstance(result, tuple) else result
            window = args[1] if len(args[1]) > 1 else args[1] * _WINDOWS[name]
            self.count += written.numel() * math.prod(window)
        elif name not in FREE and name not in _OTHER_FREE:
            self.unknown.add(name)
