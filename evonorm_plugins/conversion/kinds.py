"""Which modules and functions are norms, activations, or pass their input through.

Classes of libraries that this package does not import (torchvision, timm, Detectron2) are known by
their names.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from evonorm_plugins.conversion.in_place import imul
from evonorm_plugins.layers import NormAct

# Self-gated or rectifying, of torch. Sigmoid, tanh and their kin are not among them: after a norm
# they make gates or bounded outputs, which no norm-activation layer replaces.
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.Threshold),
)
# The same of timm, and what users often call their own.
_ACTIVATION_NAMES = {
    *("Swish", "SwishMe", "HardSwish", "HardSwishMe", "Mish", "MishMe", "HardMish", "HardMishMe"),
    *("GELU", "GELUTanh", "QuickGELU", "MemoryEfficientSwish"),
}
FUNCTION_NAMES = (
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu"),
    *("elu_", "celu", "celu_", "selu", "selu_", "gelu", "silu", "mish", "hardswish", "softplus"),
    *("threshold", "threshold_"),
)
_ACTIVATION_FUNCTIONS = {
    getattr(namespace, name)
    for namespace in (F, torch)
    for name in FUNCTION_NAMES
    if hasattr(namespace, name)
}
_ACTIVATION_METHODS = {name for name in FUNCTION_NAMES if hasattr(torch.Tensor, name)}

# An activation after one of these can as well come before it.
_PASSING = (
    *(nn.Identity, nn.Flatten, nn.FeatureAlphaDropout),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_PASSING_NAMES = {"DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d"}
_PASSING_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.flatten}
_PASSING_FUNCTIONS_BY_NAME = {"stochastic_depth", "drop_path"}
_PASSING_METHODS = {"contiguous", "flatten", "view", "reshape", "clone"}

_NORM_ACT_NAMES = {"FilterResponseNormTlu2d", "FilterResponseNormAct2d", "InplaceAbn"}
# Norms of (N, C, ...) that are no subclass of torch's, or one that computes in its own way.
_NORM_NAMES = {
    *("FrozenBatchNorm2d", "FrozenBatchNormAct2d", "SyncBatchNormAct", "BatchNormAct2d"),
    *("CrossReplicaBatchNorm1d", "CrossReplicaBatchNorm2d", "CrossReplicaBatchNorm3d"),
    *("NaiveSyncBatchNorm", "GroupNormAct", "GroupNorm1Act"),
    *("LayerNorm2d", "LayerNorm2dFp32", "LayerNormAct2d", "LayerNormAct2dFp32", "LayerNormExp2d"),
    *("RmsNorm2d", "RmsNorm2dFp32", "RmsNormAct2d", "RmsNormAct2dFp32"),
}
_TIMM_GROUP_NORMS = {"GroupNorm", "GroupNorm1"}  # torch's in another way of calling it
_OF_LAST_DIMENSIONS = (nn.LayerNorm, *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()))
_OTHER_NORMS = (
    *(_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LocalResponseNorm),
    *_OF_LAST_DIMENSIONS,
)
_OTHER_NORM_NAMES = {"RmsNorm", "RmsNormFp32", "RmsNormAct", "SimpleNorm", "SimpleNorm2d"}


def has_no_forward(module):
    """Whether a module is a mere container, such as ``nn.ModuleList``."""
    return type(module).forward is nn.Module.forward


def is_norm_act(module):
    """Whether a module is a norm-activation layer already: ours, or timm's EvoNorm and FRN."""
    name = type(module).__name__
    return isinstance(module, NormAct) or name in _NORM_ACT_NAMES or name.startswith("EvoNorm2d")


def is_norm(module):
    """Whether a module is a norm of any kind, one that is left alone included."""
    names = {c.__name__ for c in type(module).__mro__}
    return isinstance(module, _OTHER_NORMS) or bool(names & (_NORM_NAMES | _OTHER_NORM_NAMES))


def reason_to_leave(norm):
    """Why a norm cannot be replaced, whatever the model; None if it can."""
    name = type(norm).__name__
    if name in _NORM_NAMES:
        return None
    if isinstance(norm, nn.LocalResponseNorm):
        return "local response normalization has no statistics or parameters of its own"
    if isinstance(norm, _OF_LAST_DIMENSIONS) or name in _OTHER_NORM_NAMES:
        return f"{name} normalizes the last dimensions, not (N, C, ...)"
    return None


def is_unknown_subclass(norm):
    """Whether the class of a norm computes something that torch's or timm's does not."""
    if type(norm).__name__ in _NORM_NAMES | _TIMM_GROUP_NORMS:
        return False
    module = type(norm).forward.__module__
    return not module.startswith("torch.nn.")


def num_features(norm):
    """Number of channels of a norm that :func:`reason_to_leave` does not object to."""
    for attribute in ("num_features", "num_channels"):
        if isinstance(getattr(norm, attribute, None), int):
            return getattr(norm, attribute)
    return norm.normalized_shape[0] if hasattr(norm, "normalized_shape") else norm.weight.shape[0]


def inner_activation(norm):
    """The activation that timm's norm-activation layers hold, or None."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) and not isinstance(act, nn.Identity) else None


def is_activation(module):
    return isinstance(module, _ACTIVATIONS) or type(module).__name__ in _ACTIVATION_NAMES


def passes(module):
    """Whether a module is one that norm and activation may stand on either side of."""
    return isinstance(module, _PASSING) or type(module).__name__ in _PASSING_NAMES


def is_activation_call(node):
    """Whether a node of a graph is a call of an activation function or method."""
    if node.op == "call_function":
        return node.target in _ACTIVATION_FUNCTIONS
    return node.op == "call_method" and node.target in _ACTIVATION_METHODS


def activation_name(node, module=None):
    """What a call of an activation is called: ``"relu"`` for the module, function and method."""
    if module is not None:
        return type(module).__name__.lower()
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name.rstrip("_")


def is_passing_call(node):
    if node.op == "call_function":
        named = getattr(node.target, "__name__", "") in _PASSING_FUNCTIONS_BY_NAME
        return named or node.target in _PASSING_FUNCTIONS
    return node.op == "call_method" and node.target in _PASSING_METHODS


# Applied twice, they change nothing.
IDEMPOTENT = {"relu", "relu6"}


def is_inplace(node, module=None):
    """Whether an activation overwrites its input, so that whoever reads it later reads the result.

    Args:
        module: the one called, for a node that calls one.
    """
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return (
        name.endswith("_")
        or node.target is imul
        or bool(node.kwargs.get("inplace", False))
        or any(a is True for a in node.args[1:])
    )
