"""timm builds the layers of this package from now on."""

import warnings
from collections.abc import Callable
from typing import Any

from timm.layers import is_exportable, is_scriptable
from torch import nn

from evonorm_plugins.integrations.patch import wrap_method
from evonorm_plugins.integrations.timm.counterparts import KINDS, counterpart
from evonorm_plugins.integrations.timm.fusion import become

_registered: list[type[nn.Module]] = []


def register() -> None:
    """Make timm build this package's layers wherever it would build its own.

    ``timm.create_model("resnet50", norm_layer="evonorms0")``, timm's models with such layers, and
    ``timm.layers.EvoNorm2dS0(64)`` give layers that are those of :func:`fuse`. What cannot be the
    same here is timm's, and a warning says why. Models that are built with ``scriptable=True`` or
    ``exportable=True`` have timm's layers, too. Models built before stay as they are;
    :func:`unregister` undoes it.
    """
    if _registered:
        return
    for kind in KINDS:
        wrap_method(kind, "__init__")(_build)
        _registered.append(kind)


def unregister() -> None:
    """Make timm build its own layers again. Models built in between stay as they are."""
    while _registered:
        kind = _registered.pop()
        kind.__init__ = vars(kind)["__init__"].__wrapped__  # type: ignore[method-assign]


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
