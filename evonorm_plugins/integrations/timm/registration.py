"""timm builds the layers of this package from now on."""

import warnings
from collections.abc import Callable
from typing import Any

from timm.layers import is_exportable, is_scriptable
from torch import nn

from evonorm_plugins.integrations import patch
from evonorm_plugins.integrations.timm.counterparts import KINDS, counterpart
from evonorm_plugins.integrations.timm.fusion import become


def register() -> None:
    """Make timm build this package's layers wherever it would build its own.

    ``timm.create_model("resnet50", norm_layer="evonorms0")``, timm's models with such layers, and
    ``timm.layers.EvoNorm2dS0(64)`` give layers that are those of :func:`fuse`. What cannot be the
    same here is timm's, and a warning says why. Models that are built with ``scriptable=True`` or
    ``exportable=True`` have timm's layers, too. Models built before stay as they are;
    :func:`unregister` undoes it.
    """
    if patch.replaced("timm"):
        return
    with patch.recorded("timm"):
        for kind in KINDS:
            patch.wrap_method(kind, "__init__")(_build)


def unregister() -> None:
    """Make timm build its own layers again. Models built in between stay as they are."""
    patch.undo("timm")


def _build(original: Callable[..., None], self: nn.Module, *args: Any, **kwargs: Any) -> None:
    kind = type(self)
    original(self, *args, **kwargs)
    # A subclass is not finished yet.
    is_own = getattr(vars(kind).get("__init__"), "__wrapped__", None) is original
    if not is_own or is_scriptable() or is_exportable():
        return
    ours = counterpart(self)
    if isinstance(ours, str):
        warnings.warn(f"{kind.__name__} of timm stays as it is, for {ours}", stacklevel=3)
    else:
        become(self, ours)
