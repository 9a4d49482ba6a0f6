"""Replace a function of another package wherever it has been imported by name."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable)


def rebind(original: Callable, replacement: Callable) -> None:
    """Make every loaded module that holds ``original`` under its own name hold ``replacement``.

    Detectron2 imports its helpers by name (``from .batch_norm import get_norm``), so replacing the
    one in the module that defines it would not reach their users.
    """
    name = original.__name__
    for module in list(sys.modules.values()):
        # vars() rather than getattr(): lazy modules import on attribute access.
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, replacement)


def wrap_method(cls: type, name: str) -> Callable[[_Function], _Function]:
    """Decorator: replace ``cls.name`` by the decorated ``f(original, self, ...)``."""

    def decorate(function: _Function) -> _Function:
        original = cls.__dict__[name]

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(original, self, *args, **kwargs)

        setattr(cls, name, method)
        return function

    return decorate
