"""Warnings of other packages, about other packages, that every run of a detector would show."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

_WARNINGS = (
    r"`torch\.jit\.script` is deprecated",  # Detectron2 compiles small functions with it
    r"torch\.meshgrid: in an upcoming release",  # Detectron2's anchors
    r"pkg_resources is deprecated",  # Detectron2's model zoo
)
# Of a logger, the beginning of the message.
_LOGGED = {
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",  # which fvcore asks for
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # Detectron2 describes the machine
}


def silence_libraries() -> None:
    """Show none of them from now on; for programs, which own their process."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in _LOGGED:
        logging.getLogger(name).addFilter(_says_something)


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Show none of them within."""
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED[record.name])
