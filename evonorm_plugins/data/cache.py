"""What is computed once of files and kept in the user's cache folder.

A file there is written whole or not at all, by one process at a time while the others wait, and has
a checksum. One that is damaged, however, is computed anew with a warning.
"""

import contextlib
import fcntl
import hashlib
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from evonorm_plugins.errors import DataError, InputError, RunError
from evonorm_plugins.files import replacing

# Part of every name: another one where what is kept would be different.
_VERSION = 2
PATIENCE = 3600.0  # seconds; after these a process no longer waits for another


def cached(kind, files, names, make):
    """Arrays that ``make()`` computes of some files.

    Args:
        kind: the subfolder of ``$XDG_CACHE_HOME/evonorm``, or ``~/.cache/evonorm``.
        files: what they depend on, by path, size and time of change.
        names: of the arrays.
        make: gives the arrays in that order; called where they are not kept yet.

    Returns:
        A dictionary of the arrays.

    Raises:
        DataError: one of the files is not there.
    """
    name = f"{_stamp(files)}.npz"
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(root) / "evonorm" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # or there is no home
        _warn(f"nothing can be kept in a cache folder: {error}")
        return dict(zip(names, make(), strict=True))
    if path.exists():
        with contextlib.suppress(Exception):  # what is damaged is said below
            return _load(path, names)
    with _one_at_a_time(path) as alone:
        if path.exists():
            try:
                return _load(path, names)  # filled while this process waited
            except Exception as error:  # a damaged file may fail anywhere
                _warn(f"{path} is damaged and made anew: {error}")
        arrays = dict(zip(names, make(), strict=True))
        for file in path.parent.glob(f"*{path.stem}*"):
            if alone and file.suffix != ".lock" and file != path:  # of a writer that was killed
                file.unlink(missing_ok=True)
        try:
            with replacing(path) as partial, open(partial, "wb") as file:
                np.savez(file, **arrays)
        except (InputError, OSError, RunError) as error:
            _warn(f"{path} cannot be kept: {error}")
        return arrays


def _stamp(files):
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None
        line = f"{os.path.abspath(file)} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()[:24]


def _load(path, names):
    """The arrays, every byte of which is checked by the CRC that a zip file has of its members."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                # The CRC is compared at the end, which a damaged header may put elsewhere.
                if member.read(1):
                    raise ValueError(f"{name} is longer than it says")
    return arrays


@contextlib.contextmanager
def _one_at_a_time(path):
    """Gives whether this process holds a lock, which its end gives up, however it ends."""
    try:
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115 (closed below)
    except OSError:  # nothing can be written there, which is said when it is tried
        yield False
        return
    with lock:
        yield _is_locked(lock, path)


def _is_locked(lock, path):
    start, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            waited = time.monotonic() - start
        except OSError:  # a file system without locks: several may do the same work
            return False
        if waited > PATIENCE:
            _warn(f"another process has been filling {path} for {waited:.0f} s: not waiting")
            return False
        if waited > 2 and not said:
            said = True
            print(f"waiting for another process to fill {path}", file=sys.stderr)
        time.sleep(0.05)


def _warn(message):
    print(f"warning: {message}", file=sys.stderr, flush=True)
