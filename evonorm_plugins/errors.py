"""What ends a command without a traceback.

An :class:`InputError` is the user's to mend, exit status 2; a :class:`RunError` is work that could
not be done, exit status 1. Every command line ends in :func:`run_command`, which says so.
"""

import contextlib
import errno
import os
import reprlib
import sys
from collections.abc import Callable, Iterable

# Numbers of the system's errors that say that a file found no place.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the user gave is not there, of another kind, or not to be read.
_OF_THE_INPUT = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS),
)


class InputError(ValueError):
    """Input that cannot be used; the message names it and says what would be right."""


class ConfigError(InputError):
    """A config, an option or a combination of them that makes no sense."""


class UnknownNormError(ConfigError, KeyError):
    """A ``NORM`` that nobody knows; a KeyError, too, as Detectron2 raises for it."""

    __str__ = Exception.__str__


class DataError(InputError):
    """Images, annotations or a set of them that cannot be used."""


class BrokenImageError(DataError):
    """An image that cannot be read; the message names the file and the reason."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or not be used for what was asked."""


class GraphError(InputError):
    """No layer graph, or one that breaks a rule; the message says where."""


class ConvertError(InputError):
    """A model that cannot be converted as was asked."""


class AmbiguousError(ConvertError):
    """It is not clear what should become of some norms; ``refused`` has each one's reason."""

    def __init__(self, refused: dict[str, str]) -> None:
        lines = "\n".join(f"  {path or 'the model'}: {why}" for path, why in refused.items())
        super().__init__(
            "it is not clear what should become of these; norms named in keep=[...] are left as "
            f"they are:\n{lines}"
        )
        self.refused = refused


class StoreError(InputError):
    """A file that is no search store, or one of another search."""


class ProtocolError(InputError):
    """Numbers that were measured in different ways were to be compared."""


class MissingDependencyError(InputError):
    """A package of an extra is not installed; the message holds the command."""

    def __init__(self, package: str, extra: str = "metrics") -> None:
        super().__init__(
            f'{package} is not installed; install it with: pip install "evonorm-plugins[{extra}]"'
        )


class RunError(RuntimeError):
    """Work that failed, or was stopped, although the input was right."""


class NoSpaceError(RunError):
    """The disk is full; what was to be replaced is still there."""


class NonFiniteError(RunError, FloatingPointError):
    """A loss or a gradient is NaN or infinite; the weights are those of the step before.

    ``result`` is what the run has reached so far, where it says so.
    """

    result = None


class CollapseError(RunError):
    """The generator has collapsed; what it was before is kept."""


class LostRankError(RunError):
    """Another process of the run is gone; the group cannot be taken down without it."""


class RayError(RunError):
    """Ray is not installed, cannot start, or does not answer."""


class InterruptedRunError(RunError):
    """A sweep or a search was stopped before its end; what ended so far is saved."""


def first(values: Iterable, n: int = 5) -> str:
    """The first ``n`` of ``values`` for a message, and how many more there are."""
    values = list(values)
    shown = ", ".join(str(value) for value in values[:n])
    return f"{shown} and {len(values) - n} more" if len(values) > n else shown


def shown(value: object) -> str:
    """``repr`` of a value for a message, cut where it is long or nested deeply."""
    text = _SHORT.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 12


def run_command(work: Callable[[], int | None]) -> int:
    """Do a command's work; returns its exit status, after one line on stderr where it failed.

    In a run of several processes, as ``torchrun`` starts them, the line names the rank.

    Args:
        work: called without arguments; gives the exit status, or None for 0. What it raises and is
            neither of this module, nor of the system, torch or a lack of memory is a mistake of the
            program: it is raised on.
    """
    status: int | None
    try:
        return work() or 0
    except KeyboardInterrupt:
        status, text = 1, "interrupted"
    except BrokenPipeError:
        # Who read the output has read enough. Python's own flush at the end would fail once more.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        status, text = ending(error)
        if status is None:
            raise
        if isinstance(error, LostRankError):
            say_error(text)
            os._exit(status)
    say_error(text)
    return status


def say_error(text: str) -> None:
    """One line on stderr: ``error: ...``, after the rank where there are several."""
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    where = "" if rank is None else f"rank {rank}: "
    print(f"{where}error: {' '.join(text.split())}", file=sys.stderr, flush=True)


def ending(error: Exception) -> tuple[int | None, str]:
    """``(exit status, message)`` of an error; ``(None, "")`` for one that is none of these."""
    if isinstance(error, InputError | RunError):
        return 2 if isinstance(error, InputError) else 1, str(error)
    if isinstance(error, OSError) and error.errno is not None:
        what = "no space left to write" if error.errno in NO_SPACE else error.strerror
        where = "" if error.filename is None else f"{error.filename}: "
        return 2 if error.errno in _OF_THE_INPUT else 1, f"{where}{what}"
    text = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):
        return 2, f'{text}; to install what it needs: pip install "evonorm-plugins[all]"'
    # torch's lack of memory: of a GPU a class of its own, of the CPU a plain error.
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return 1, f"there is not enough memory: {text}"
    if isinstance(error, MemoryError):
        return 1, "there is not enough memory"
    if isinstance(error, RuntimeError | OSError):
        return 1, f"{type(error).__name__}: {text}"
    return None, ""


def reason(error: BaseException) -> str:
    """What another library's exception says, on one line."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__
