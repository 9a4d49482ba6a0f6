"""The layers of this package in models of timm, in place of its own.

    from evonorm_plugins.integrations.timm import fuse

    model, report = fuse(timm.create_model("resnetv2_50d_evos", pretrained=True))

The model computes the same, faster and in less memory, with the same parameters under the same
names.
"""

from evonorm_plugins.errors import CheckpointError, ConvertError
from evonorm_plugins.integrations.timm.checkpoint import load_state_dict
from evonorm_plugins.integrations.timm.fusion import FuseReport, Fusion, fuse
from evonorm_plugins.integrations.timm.registration import register, unregister

__all__ = [
    "CheckpointError",
    "ConvertError",
    "FuseReport",
    "Fusion",
    "fuse",
    "load_state_dict",
    "register",
    "unregister",
]
