"""All of a checkpoint, or nothing."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from evonorm_plugins.errors import CheckpointError, first
from evonorm_plugins.integrations.timm.counterparts import KINDS
from evonorm_plugins.layers import NormAct


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Give ``model`` the values of ``state_dict``, after a look at all of it.

    ``model.load_state_dict`` has overwritten what fits before it says what does not. Here nothing
    is changed then. ``timm.models.load_state_dict`` reads one from a file.

    Args:
        model: of timm, fused or not.
        state_dict: of the same model, fused or not.

    Raises:
        CheckpointError: the checkpoint is of another model, or some of its norms are those of
            another layer, as in one that was converted in part. The message names them.
    """
    own = model.state_dict()
    norms = [
        (f"{path}.".lstrip("."), module)
        for path, module in model.named_modules()
        if isinstance(module, (NormAct, *KINDS))
    ]
    wrong = []
    for prefix, module in norms:
        expected, there = (
            sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
            for keys in (own, state_dict)
        )
        if expected != there:
            held = ", ".join(there) or "nothing"
            wrong.append(
                f"{prefix.rstrip('.') or 'the model'} ({type(module).__name__} with "
                f"{', '.join(expected)}) has {held}"
            )
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of {len(norms)} norms are of another layer in the checkpoint: "
            f"{first(wrong, 3)}; nothing was loaded"
        )
    both = [key for key in own if key in state_dict]
    for what, keys in (
        ("lacks", [key for key in own if key not in state_dict]),
        ("has what the model does not:", [key for key in state_dict if key not in own]),
        ("has other shapes of", [k for k in both if _shape(own[k]) != _shape(state_dict[k])]),
    ):
        if keys:
            raise CheckpointError(f"the checkpoint {what} {first(keys)}; nothing was loaded")
    model.load_state_dict(state_dict)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value)
