"""Floating point operations of norm-activation layers in Detectron2's ``FlopCountAnalysis``.

fvcore counts by the operations of a traced graph, one for a multiply-add, and Detectron2 leaves
element-wise ones out. The handles here count them, as :mod:`evonorm_plugins.flops` does, where they
lie inside a norm-activation layer. Outside of these layers such operations count nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils import analysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from evonorm_plugins.flops import ELEMENTWISE, FREE, REDUCTIONS
from evonorm_plugins.integrations.patch import wrap_method
from evonorm_plugins.layers import NormAct


def norm_act_flop_handles(model: nn.Module) -> dict[str, Callable | None]:
    """``{operation: handle}`` for ``set_op_handle`` of the analysis of ``model``."""
    paths = {name for name, module in model.named_modules() if isinstance(module, NormAct)}

    def of_output(inputs: list, outputs: list) -> int:
        return _elements(outputs[0]) if _scope(outputs[0]) in paths else 0

    def of_input(inputs: list, outputs: list) -> int:
        return _elements(inputs[0]) if _scope(outputs[0]) in paths else 0

    handles: dict[str, Callable | None] = {
        **dict.fromkeys(ELEMENTWISE, of_output),
        **dict.fromkeys(REDUCTIONS, of_input),
        **dict.fromkeys(FREE, None),
    }
    return {f"aten::{operation}": handle for operation, handle in handles.items()}


def _elements(value: torch.Value) -> int:
    return math.prod(get_shape(value))


def _scope(value: torch.Value) -> str:
    """Path of the module that an operation of the graph runs in."""
    return value.node().scopeName().split("/")[-1]


def register() -> None:
    @wrap_method(analysis.FlopCountAnalysis, "__init__")
    def init(original: Callable, self: Any, model: nn.Module, inputs: Any) -> None:
        original(self, model, inputs)
        if any(isinstance(m, NormAct) for m in model.modules()):
            # What is analysed is an adapter that holds the model.
            self.set_op_handle(**norm_act_flop_handles(self._model))
