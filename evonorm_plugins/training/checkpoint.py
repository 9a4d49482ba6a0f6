"""Checkpoints of runs: written whole or not at all, read without running anything."""

import os
from pathlib import Path

import torch

from evonorm_plugins.errors import CheckpointError, ConfigError, InputError
from evonorm_plugins.files import check_folder, replacing

# What a run writes beside its newest checkpoint, and a new run would overwrite.
_KEPT = ("best*.pt", "good.pt")


class Format:
    """Checkpoints of one kind: dictionaries of tensors and plain values.

    Args:
        name: kept in every file.
        version: of what is in it; later ones are not read.
        needs: ``{key: type}`` of what every file holds beside; one without is not read.
    """

    def __init__(self, name, version=1, needs=None):
        self.name, self.version, self.needs = name, version, needs or {}

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
            CheckpointError: no such file, cut off, of another kind or of a later version, or it
                lacks something.
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
        _check_needs(state, {"version": int}, path)
        if state["version"] > self.version:
            raise CheckpointError(
                f"{path} has version {state['version']}, this package reads up to {self.version}"
            )
        _check_needs(state, self.needs, path)
        return state

    def is_of(self, path, key, value):
        """Whether there is a checkpoint at ``path`` that holds this value."""
        try:
            return self.load(path).get(key) == value
        except CheckpointError:
            return False

    def resumed(self, path, *, resume):
        """What a run begins with: :meth:`load`, or None where there is no file yet.

        Args:
            path: of the newest checkpoint, in the run's folder.
            resume: go on with it.

        Raises:
            ConfigError: there is one and ``resume`` is False, there are other checkpoints which a
                new run might overwrite, or the folder cannot be written to.
            CheckpointError: see :meth:`load`.
        """
        folder = os.path.dirname(path)
        check_folder(folder)
        if os.path.exists(path):
            if resume:
                return self.load(path)
            raise ConfigError(
                f"output_dir={folder} holds a run already: go on with --resume, or name another one"
            )
        others = sorted(p.name for name in _KEPT for p in Path(folder).glob(name))
        if others:
            raise ConfigError(
                f"output_dir={folder} holds {', '.join(others)} of a run, but no "
                f"{os.path.basename(path)} to go on from: name another folder, or move them away"
            )
        return None


def _check_needs(state, needs, path):
    for key, kind in needs.items():
        if not isinstance(state.get(key), kind):
            what = f"its {key} is no {kind.__name__}" if key in state else f"it has no {key}"
            raise CheckpointError(f"{path} is a damaged checkpoint: {what}")


def loading(path, load, *args):
    """``load(*args)``, which takes over what the checkpoint ``path`` holds.

    Raises:
        CheckpointError: where it lacks something, or is of another model.
    """
    try:
        return load(*args)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
        raise CheckpointError(f"{path} does not fit this run: {reason}") from None
