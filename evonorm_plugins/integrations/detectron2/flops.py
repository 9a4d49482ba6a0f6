"""Floating point operations of norm-activation layers in Detectron2's ``FlopCountAnalysis``.

fvcore counts by the operations of a traced graph, and Detectron2 leaves element-wise ones out. The
handles here count them where they lie inside a norm-activation layer, one for each element that an
operation writes (an affine transform is one multiply-add) or, for a reduction, reads.
"""

import math

from detectron2.utils import analysis
from fvcore.nn.jit_handles import get_shape

from evonorm_plugins.integrations.detectron2.patch import wrap_method
from evonorm_plugins.layers import NormAct

_ELEMENTWISE = (
    "add", "addcmul", "div", "maximum", "mul", "relu", "rsqrt", "sigmoid", "silu", "sqrt", "square",
    "sub", "tanh",
)  # fmt: skip
_REDUCTIONS = ("mean", "var")


def norm_act_flop_handles(model, prefix=""):
    """``{operation: handle}`` for ``fvcore.nn.FlopCountAnalysis.set_op_handle``.

    Args:
        model: the module that will be analysed, or its child called ``prefix``.
    """
    paths = {
        ".".join(filter(None, (prefix, name)))
        for name, module in model.named_modules()
        if isinstance(module, NormAct)
    }

    def handle(of_output):
        def count(inputs, outputs):
            scope = outputs[0].node().scopeName().split("/")[-1]
            if not _inside(scope, paths):
                return 0
            return math.prod(get_shape(outputs[0] if of_output else inputs[0]))

        return count

    return {f"aten::{op}": handle(of_output=True) for op in _ELEMENTWISE} | {
        f"aten::{op}": handle(of_output=False) for op in _REDUCTIONS
    }


def _inside(scope, paths):
    return scope in paths


def register():
    @wrap_method(analysis.FlopCountAnalysis, "__init__")
    def init(original, self, model, inputs):
        original(self, model, inputs)
        if any(isinstance(m, NormAct) for m in model.modules()):
            # Detectron2 analyses the model as the child "model" of an adapter.
            self.set_op_handle(**norm_act_flop_handles(model, prefix="model"))
