"""Floating point operations of norm-activation layers in Detectron2's ``FlopCountAnalysis``.

fvcore counts by the operations of a traced graph, one for a multiply-add, and Detectron2 leaves
element-wise ones out. The handles here count them, as :mod:`evonorm_plugins.flops` does, where they
lie inside a norm-activation layer. Outside of these layers such operations count nothing.
"""

import math
from collections.abc import Callable

from detectron2.utils import analysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from evonorm_plugins.flops import ELEMENTWISE, FREE, REDUCTIONS
from evonorm_plugins.integrations.detectron2.patch import wrap_method
from evonorm_plugins.layers import NormAct


def norm_act_flop_handles(model: nn.Module) -> dict[str, Callable | None]:
    """``{operation: handle}`` for ``set_op_handle`` of the analysis of ``model``."""
    paths = {name for name, module in model.named_modules() if isinstance(module, NormAct)}

    def of_output(inputs, outputs):
        return _elements(outputs[0]) if _scope(outputs[0]) in paths else 0

    def of_input(inputs, outputs):
        return _elements(inputs[0]) if _scope(outputs[0]) in paths else 0

    handles = dict.fromkeys(ELEMENTWISE, of_output)
    handles |= dict.fromkeys(REDUCTIONS, of_input)
    handles |= dict.fromkeys(FREE, None)
    return {f"aten::{operation}": handle for operation, handle in handles.items()}


def _elements(value):
    return math.prod(get_shape(value))


def _scope(value):
    """Path of the module that an operation of the graph runs in."""
    return value.node().scopeName().split("/")[-1]


def register():
    @wrap_method(analysis.FlopCountAnalysis, "__init__")
    def init(original, self, model, inputs):
        original(self, model, inputs)
        if any(isinstance(m, NormAct) for m in model.modules()):
            # What is analysed is an adapter that holds the model.
            self.set_op_handle(**norm_act_flop_handles(self._model))
