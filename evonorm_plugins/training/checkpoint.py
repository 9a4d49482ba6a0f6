"""Files of a run: written whole or not at all, read without running anything."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import torch

from evonorm_plugins.errors import CheckpointError, ConfigError, NoSpaceError


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary name beside ``path`` and renames it to ``path`` once all is written.

    Raises:
        NoSpaceError: the disk is full; what was at ``path`` is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as a RuntimeError without a number.
        if _is_full(error, path.parent):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise NoSpaceError(
                f"no space left to write {path} ({free:.0f} MiB free); what was there is untouched"
            ) from None
        raise
    finally:
        partial.unlink(missing_ok=True)


class Format:
    """Checkpoints of one kind: dictionaries of tensors and plain values.

    Args:
        name: kept in every file.
        version: of what is in it; later ones are not read.
    """

    def __init__(self, name, version=1):
        self.name, self.version = name, version

    def save(self, state, path):
        """Write a dictionary of tensors and plain values.

        Raises:
            NoSpaceError: the disk is full; what was at ``path`` is still there.
        """
        with replacing(path) as partial:
            torch.save({"format": self.name, "version": self.version, **state}, partial)

    def load(self, path, device="cpu"):
        """What :meth:`save` wrote.

        Raises:
            CheckpointError: no such file, cut off, of another kind or of a later version.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"there is no checkpoint {path}")
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:
            # What torch says of a file with code in it is advice to run that code.
            raise CheckpointError(
                f"cannot read checkpoint {path} ({path.stat().st_size} bytes): it is cut off, or "
                f"no checkpoint of this package ({type(error).__name__})"
            ) from None
        if not isinstance(state, dict) or state.get("format") != self.name:
            kind = self.name.removeprefix("evonorm-plugins ")
            raise CheckpointError(f"{path} is not a {kind} checkpoint")
        if state["version"] > self.version:
            raise CheckpointError(
                f"{path} has version {state['version']}, this package reads up to {self.version}"
            )
        return state

    def resumed(self, path, *, resume):
        """What a run begins with: :meth:`load`, or None where there is no file yet.

        Raises:
            ConfigError: there is one and ``resume`` is False.
            CheckpointError: see :meth:`load`.
        """
        if not os.path.exists(path):
            return None
        if not resume:
            raise ConfigError(
                f"output_dir={os.path.dirname(path)} holds a run already: go on with --resume, or "
                "name another one"
            )
        return self.load(path)


def _is_full(error, folder):
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error)
    written = "write" in text.lower() and shutil.disk_usage(folder).free < 2**20
    return written or any(t in text for t in ("No space", "File too large", "PytorchStreamWriter"))
