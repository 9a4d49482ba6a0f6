"""Checkpoints: written whole or not at all, read without running anything."""

from pathlib import Path

import torch

from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.census import norms_of
from evonorm_plugins.integrations.torchvision.models import build_detector

FORMAT = "evonorm-plugins torchvision detector"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of another model."""


def save(path, model, options, categories, **more):
    """Write the model, what it was built from, and ``more``, a dictionary of plain values."""
    state = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.state_dict(),
        "norms": norms_of(model),
        "options": options.to_dict(),
        "categories": list(categories),
    }
    with replacing(path) as partial:
        torch.save({**state, **more}, partial)


def read(path):
    """What :func:`save` wrote, on the CPU.

    Raises:
        CheckpointError: no such file, cut off, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # What torch says of a file with code in it is advice to run that code.
        raise CheckpointError(
            f"cannot read checkpoint {path} ({path.stat().st_size} bytes): it is cut off, or was "
            f"not written by tools/train_torchvision.py ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by tools/train_torchvision.py")
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path} has version {state['version']}, this package reads up to {VERSION}"
        )
    return state


def load_into(model, state, path, categories):
    """Give ``model`` the weights of a checkpoint.

    Raises:
        CheckpointError: it is of another model, norm or set of categories.
    """
    was = state["options"]["model"], state["categories"]
    if was[1] != list(categories):
        raise CheckpointError(
            f"{path} was trained on {len(was[1])} categories ({', '.join(was[1][:5])} ...), the "
            f"data has {len(categories)} ({', '.join(categories[:5])} ...)"
        )
    norms = norms_of(model)
    wrong = [name for name, kind in norms.items() if state["norms"].get(name, kind) != kind]
    if wrong:
        raise CheckpointError(
            f"{path} was trained with another norm: {len(wrong)} of {len(norms)} norms differ, "
            f"first {wrong[0]}: {state['norms'][wrong[0]]} in the checkpoint, {norms[wrong[0]]} in "
            "the model"
        )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{path} is of another model, {was[0]}: {reason}") from None


def load_detector(path):
    """The detector of a checkpoint in evaluation mode, and the names of its categories.

    Label k of its predictions is category k - 1.

    Raises:
        CheckpointError: the file cannot be read.
    """
    state = read(path)
    options, categories = state["options"], state["categories"]
    model, _ = build_detector(
        options["model"],
        len(categories),
        options["norm"],
        min_size=options["min_size"],
        max_size=options["max_size"],
        model_options=options["model_options"],
    )
    load_into(model, state, path, categories)
    return model.eval(), categories
