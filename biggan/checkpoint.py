"""Files of a run: what they hold, written whole or not at all, read without running anything.

``checkpoint.pt`` goes on with training: config, class names, generator, discriminator, average
(``ema``), both optimizers, scaler, random states of every rank, position in the data. ``best.pt``
is for others: config, class names, the averaged generator and its score.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import torch

FORMAT = "evonorm-plugins biggan"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or read, or used for what was asked."""


class NoSpaceError(CheckpointError):
    """The disk is full; what was to be replaced is still there."""


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


def save(state, path):
    """Write a dictionary of tensors and plain values.

    Raises:
        NoSpaceError: the disk is full; what was at ``path`` is still there.
    """
    with replacing(path) as partial:
        torch.save({"format": FORMAT, "version": VERSION, **state}, partial)


def load(path, device="cpu"):
    """What :func:`save` wrote.

    Raises:
        CheckpointError: no such file, cut off, not written by this package or by a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # What torch says of a file with code in it is advice to run that code.
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it is cut off, or no checkpoint of "
            "this package"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of biggan")
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path} has version {state['version']}, this package reads up to {VERSION}"
        )
    return state


def _is_full(error, folder):
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error)
    written = "write" in text.lower() and shutil.disk_usage(folder).free < 2**20
    return written or any(t in text for t in ("No space", "File too large", "PytorchStreamWriter"))
