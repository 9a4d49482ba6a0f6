"""Functions and methods of other packages, replaced so that all of it can be undone.

What is replaced while :func:`recorded` is active is listed by :func:`replaced` and put back by
:func:`undo`, for each package by itself.
"""

import contextlib
import functools
import inspect
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable)
# Package -> (name of what was replaced, what puts it back), oldest first.
_undo: dict[str, list[tuple[str, Callable[[], None]]]] = defaultdict(list)
_recording: str | None = None


@contextlib.contextmanager
def recorded(package: str) -> Iterator[None]:
    """What is replaced within, of ``package``, is put back by :func:`undo`."""
    global _recording
    _recording, before = package, _recording
    try:
        yield
    finally:
        _recording = before


def replaced(package: str) -> list[str]:
    """Names of what is replaced now, such as ``package.module.Class.method``."""
    return sorted({name for name, _ in _undo[package]})


def undo(package: str) -> None:
    """Put everything back, newest first. What somebody else has replaced since is left alone."""
    while _undo[package]:
        _undo[package].pop()[1]()


def _record(owner: Any, name: str, restore: Callable[[], None]) -> None:
    if _recording is not None:
        path = ".".join((owner.__module__, owner.__qualname__, name)).rstrip(".")
        _undo[_recording].append((path, restore))


def copy_function(function: Callable) -> Callable:
    """A function that does what ``function`` does now, and goes on doing it."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


def _call(*args: Any, _replacement: Callable, **options: Any) -> Any:
    return _replacement(*args, **options)


def redirect(function: Callable, replacement: Callable) -> None:
    """Make every call of ``function`` a call of ``replacement``.

    The function object stays and its code is exchanged. Detectron2 imports its helpers by name
    (``from .batch_norm import get_norm``), as its users do: whoever has taken the function, under
    whatever name and whenever, calls the replacement.

    Args:
        function: a plain function, without variables of an outer one.
    """
    assert isinstance(function, types.FunctionType)
    names = ("__code__", "__defaults__", "__kwdefaults__")
    before = {name: getattr(function, name) for name in names}
    signature = inspect.signature(function)
    function.__code__ = _call.__code__
    function.__defaults__, function.__kwdefaults__ = None, {"_replacement": replacement}
    function.__signature__ = signature  # type: ignore[attr-defined]

    def restore() -> None:
        if function.__code__ is _call.__code__:
            for name, value in before.items():
                setattr(function, name, value)
            del function.__signature__  # type: ignore[attr-defined]

    _record(function, "", restore)


def wrap_method(cls: type, name: str) -> Callable[[_Function], _Function]:
    """Decorator: replace ``cls.name`` by the decorated ``f(original, self, ...)``.

    The method that was there is the new one's ``__wrapped__``.
    """

    def decorate(function: _Function) -> _Function:
        original = cls.__dict__[name]

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(original, self, *args, **kwargs)

        def restore() -> None:
            if cls.__dict__[name] is method:
                setattr(cls, name, original)

        setattr(cls, name, method)
        _record(cls, name, restore)
        return function

    return decorate


def find_first(finder: MetaPathFinder) -> None:
    """Ask ``finder`` before all others where a module is."""
    sys.meta_path.insert(0, finder)
    if _recording is not None:
        _undo[_recording].append(("sys.meta_path", lambda: sys.meta_path.remove(finder)))
