"""Who asked for a norm, by class and config key: for messages."""

import dis
import os
import sys
from collections.abc import Iterator
from types import CodeType, FrameType

from torch import nn

from evonorm_plugins.errors import ConfigError

_HERE = os.path.dirname(os.path.dirname(__file__))  # of the integrations
HOW_TO = (
    "Give norm and activation to Detectron2's Conv2d (norm=, activation=), or as modules that "
    "forward applies one after the other, and decorate the class with "
    "evonorm_plugins.integrations.detectron2.adapt; or write it with evonorm_plugins.get_norm_act "
    "(apply_act=False where no activation follows) and leave the activation out."
)


def asking() -> str:
    """Name of the class whose constructor asks for a norm, or of the function that does."""
    for frame in _frames():
        if isinstance(frame.f_locals.get("self"), nn.Module):
            return type(frame.f_locals["self"]).__name__
    # The first that is not of this package.
    codes = (frame.f_code for frame in _frames())
    return next(f"{c.co_name}()" for c in codes if not c.co_filename.startswith(_HERE))


def refuse(asked_by: str, norm: str, why: str) -> ConfigError:
    """The error for a class that cannot take a norm-activation layer."""
    keys = " or ".join(_config_keys())
    where = f" of {keys}" if keys else ""
    return ConfigError(f"{asked_by} cannot take NORM {norm!r}{where}: {why}. {HOW_TO}")


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def _config_keys() -> list[str]:
    """Keys ``MODEL...NORM`` that the code nearest to the running constructor reads."""
    for frame in _frames():
        classes = type(frame.f_locals.get("self")).__mro__
        methods = [vars(cls).get("from_config") for cls in classes]
        functions = [getattr(method, "__func__", None) for method in methods]
        codes = [frame.f_code, *(f.__code__ for f in functions if f is not None)]
        keys = dict.fromkeys(key for code in codes for key in _keys_in(code))
        if keys:
            return list(keys)
    return []


def _keys_in(code: CodeType) -> Iterator[str]:
    names: list[str] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "EXTENDED_ARG":
            continue
        if instruction.opname != "LOAD_ATTR":
            names = []
            continue
        names.append(instruction.argval)
        if names[0] == "MODEL" and names[-1].endswith("NORM"):
            yield ".".join(names)
