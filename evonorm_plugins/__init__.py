"""EvoNorm layers for PyTorch (Liu et al., arXiv 2004.02967) and their integrations."""

from evonorm_plugins.convert import Conversion, ConvertError, convert
from evonorm_plugins.kernels import show_config
from evonorm_plugins.layers import (
    ConditionalNormAct,
    EvoNormB0,
    EvoNormB1,
    EvoNormB2,
    EvoNormS0,
    EvoNormS1,
    EvoNormS2,
    NormAct,
    SyncEvoNormB0,
    SyncEvoNormB1,
    SyncEvoNormB2,
    convert_cross_replica,
    convert_sync_evonorm,
)
from evonorm_plugins.registry import get_norm_act, list_norm_acts, register_norm_act

__version__ = "0.1.0"

__all__ = [
    "ConditionalNormAct",
    "Conversion",
    "ConvertError",
    "EvoNormB0",
    "EvoNormB1",
    "EvoNormB2",
    "EvoNormS0",
    "EvoNormS1",
    "EvoNormS2",
    "NormAct",
    "SyncEvoNormB0",
    "SyncEvoNormB1",
    "SyncEvoNormB2",
    "convert",
    "convert_cross_replica",
    "convert_sync_evonorm",
    "get_norm_act",
    "list_norm_acts",
    "register_norm_act",
    "show_config",
]
