"""Files and folders that are written whole or not at all, and what may be written over."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from evonorm_plugins.errors import NO_SPACE, ConfigError, InputError, NoSpaceError, RunError

_PROBE = 2**20  # bytes that do not fit on a disk that is called full


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name beside ``path``; its file becomes ``path`` once all is written.

    The name is of this call alone, so several processes may write the same file: each of them
    writes a whole one, and the last one stays. It ends as ``path`` does, for writers that choose
    the format by that. The file and its folder are flushed to the disk, folders that lack are made,
    and the permissions are those that umask leaves. A link stays what it is: the file it leads to
    is replaced. What is no file, such as ``/dev/stdout``, is written to as it is.

    Raises:
        InputError: ``path`` cannot be written, whatever is free on the disk.
        NoSpaceError: the disk is full, or the file larger than is allowed. In this case, as with
            any other error, what was at ``path`` is still there and the temporary file is not.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        yield path
        return
    target, partial = _temporary_file(path)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except Exception as error:
        if _is_full(error, partial):
            raise _no_space(path, target.parent) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(target.parent)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary folder beside ``path``, which becomes ``path`` once all is in it.

    Args:
        path: of nothing that is there, or of an empty folder.

    Raises:
        InputError, NoSpaceError: see :func:`replacing`.
    """
    path = Path(os.path.realpath(path))
    partial = _temporary(path)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(_reason(path, error)) from None
    try:
        yield partial
        os.rename(partial, path)
    except Exception as error:
        if _is_full(error, partial / "probe"):
            raise _no_space(path, path.parent) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _flush_folder(path.parent)


def check_output(
    path: str | os.PathLike,
    *,
    name: str = "--out",
    inputs: Iterable[str | os.PathLike | None] = (),
    force: bool = False,
    ours: Callable[[str | os.PathLike], bool] | None = None,
) -> None:
    """Find out before the work whether its result can be written to the file ``path``, and may be.

    Args:
        name: of the option that gave the path, for messages.
        inputs: paths of what is read; they are not written over, whatever ``force`` is. None
            among them is passed over.
        force: whether a file that is there may be replaced.
        ours: ``ours(path)`` says whether a file that is there is a former result of the same
            command, which may be replaced without ``force``; None: it is not.

    Raises:
        ConfigError: names the path and the reason.
    """
    name = f"{name} "
    _check_place(path, name)
    if os.path.isdir(path):
        raise ConfigError(f"{name}{path} is a folder, not a file")
    for given in inputs:
        if given is not None and _is_same(path, given):
            raise ConfigError(f"{name}{path} is an input, too: name another file")
    if os.path.isfile(path) and not (force or (ours is not None and ours(path))):
        raise ConfigError(
            f"{name}{path} is there already, and not of this command: name another file, or "
            "replace it with --force"
        )


def check_folder(path: str | os.PathLike, *, name: str = "output_dir") -> None:
    """Find out before the work whether files can be written to the folder ``path``, there or not.

    Raises:
        ConfigError: names the path and the reason.
    """
    name = f"{name} " if name.startswith("-") else f"{name}="
    _check_place(path, name)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ConfigError(f"{name}{path} is a file, not a folder")


def holds_record(path: str | os.PathLike, *keys: str) -> bool:
    """Whether a file is a JSON object with these keys: what one of the commands has written."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and all(key in record for key in keys)


def _check_place(path: str | os.PathLike, name: str) -> None:
    if not os.fspath(path):
        raise ConfigError(f"{name.strip()}: the name is empty")
    try:
        _check_name(path)
        folder = Path(path)
        folder = folder if folder.is_dir() else folder.absolute().parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ConfigError(f"{name}{path}: {folder} is a file, not a folder")
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        if isinstance(error, InputError):
            raise
        raise ConfigError(f"{name}{_reason(path, error)}") from None


def _is_same(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return os.path.realpath(a) == os.path.realpath(b)


def _temporary(path: Path) -> Path:
    # The name itself may be as long as a name can be.
    return path.with_name(f".{path.stem[:40]}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")


def _check_name(path: str | os.PathLike) -> None:
    """Raise OSError or ValueError for what can be no name of a file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)


def _temporary_file(path: Path) -> tuple[Path, Path]:
    """``(file to replace, temporary file)``, which is made."""
    try:
        _check_name(path)
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _temporary(target)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in NO_SPACE:
            raise _no_space(path, target.parent) from None
        raise InputError(_reason(path, error)) from None
    return target, partial


def _is_full(error: Exception, partial: Path) -> bool:
    """Whether an error is due to a full disk: not all libraries say so."""
    if isinstance(error, InputError | RunError):
        return False
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    try:
        with open(partial, "ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as probe:
        return probe.errno in NO_SPACE
    return False


def _no_space(path: str | os.PathLike, folder: Path) -> NoSpaceError:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**20
    return NoSpaceError(
        f"no space left to write {path} ({free:.0f} MiB free); what was there is untouched"
    )


def _reason(path: str | os.PathLike, error: Exception) -> str:
    return f"{path} cannot be written: {getattr(error, 'strerror', None) or error}"


def _flush_folder(folder: Path) -> None:
    # Some systems and file systems cannot.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
