"""Checkpoints of detectors, with what they were built from."""

from pathlib import Path
from typing import Any

from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.model_norms import norms_of
from evonorm_plugins.integrations.torchvision.config import Options
from evonorm_plugins.integrations.torchvision.models import build_detector
from evonorm_plugins.training.checkpoint import Format

FORMAT = Format(
    "evonorm-plugins torchvision detector",
    needs={"options": dict, "categories": list, "norms": dict, "model": dict},
)


def save(
    path: Path, model: nn.Module, options: Options, categories: list[str], **more: Any
) -> None:
    """Write the model, what it was built from, and ``more``, a dictionary of plain values.

    Raises:
        NoSpaceError: the disk is full; what was at ``path`` is still there.
    """
    state = {
        "model": model.state_dict(),
        "norms": norms_of(model),
        "options": options.to_dict(),
        "categories": list(categories),
    }
    FORMAT.save({**state, **more}, path)


def load_into(model: nn.Module, state: dict, path: str | Path, categories: list[str]) -> None:
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


def load_detector(path: str | Path) -> tuple[nn.Module, list[str]]:
    """The detector of a checkpoint in evaluation mode, and the names of its categories.

    Label k of its predictions is category k - 1.

    Raises:
        CheckpointError: the file cannot be read.
    """
    state = FORMAT.load(path)
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
