"""EvoNorm layers for PyTorch (Liu et al., arXiv 2004.02967) and their integrations."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evonorm_plugins.conversion import Conversion, convert
    from evonorm_plugins.errors import ConvertError
    from evonorm_plugins.flops import FlopCount, count_flops
    from evonorm_plugins.fold import fold_for_inference
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
    "FlopCount",
    "NormAct",
    "SyncEvoNormB0",
    "SyncEvoNormB1",
    "SyncEvoNormB2",
    "convert",
    "convert_cross_replica",
    "convert_sync_evonorm",
    "count_flops",
    "fold_for_inference",
    "get_norm_act",
    "list_norm_acts",
    "register_norm_act",
    "show_config",
]

# Found on first use: torch takes seconds to import, and a command line's help needs none of it.
_HOMES = {
    "conversion": ("Conversion", "convert"),
    "errors": ("ConvertError",),
    "flops": ("FlopCount", "count_flops"),
    "fold": ("fold_for_inference",),
    "kernels": ("show_config",),
    "layers": (
        "ConditionalNormAct",
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
        "convert_cross_replica",
        "convert_sync_evonorm",
    ),
    "registry": ("get_norm_act", "list_norm_acts", "register_norm_act"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name):
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        try:
            value = importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
