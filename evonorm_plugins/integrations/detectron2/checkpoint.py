"""Refuse checkpoints that were trained with another norm, or that are cut off.

Detectron2 loads what fits and warns about the rest, and such a model detects nothing.
"""

import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2.patch import wrap_method
from evonorm_plugins.integrations.model_norms import norms_of

# Keys of a norm in a checkpoint -> what they may belong to.
_KINDS = {
    frozenset({"weight", "bias"}): "GN, LN, EvoNormS1, EvoNormS2 or a frozen affine transform",
    frozenset({"weight", "bias", "running_mean", "running_var"}): "BN",
    frozenset({"weight", "bias", "v"}): "EvoNormS0 or FRN",
    frozenset({"weight", "bias", "v", "running_var"}): "EvoNormB0",
    frozenset({"weight", "bias", "running_var"}): "EvoNormB1 or EvoNormB2",
}


def check_norms(model: nn.Module, checkpoint: dict) -> None:
    """Compare the norms of a checkpoint with those of the model it is loaded into.

    Args:
        checkpoint: what was loaded: ``model`` and, if this package saved it, ``norms``.

    Raises:
        CheckpointError: a norm of the model was another one in the checkpoint; names both.
    """
    saved = checkpoint.get("norms", {})
    keys: dict[str, set[str]] = defaultdict(set)
    for key in checkpoint["model"]:
        prefix, _, leaf = key.removeprefix("module.").rpartition(".")
        keys[prefix].add(leaf)
    wrong, compared = [], 0
    for name, kind in norms_of(model).items():
        inside = {
            p.removeprefix(name).strip("."): k
            for p, k in keys.items()
            if p == name or p.startswith(name + ".")
        }
        if checkpoint.get("matching_heuristics"):
            # Keys that found no place in the model have kept a name that lacks its first parts.
            left = (k for p, k in keys.items() if p and name.endswith("." + p))
            inside[""] = set(inside.get("", ())).union(*left)
        if not any(inside.values()):
            continue  # the checkpoint is of a part of the model
        compared += 1
        if name in saved:
            was = saved[name]
        else:
            was = _kind_by_keys(inside, model.get_submodule(name), kind)
        if was != kind:
            wrong.append((name, was, kind))
    if wrong:
        # One with its activation, if there is one, tells most.
        name, was, kind = min(wrong, key=lambda w: "without activation" in w[1] + w[2])
        raise CheckpointError(
            f"the checkpoint was trained with another norm: {len(wrong)} of {compared} norms "
            f"differ, first {name}: {was} in the checkpoint, {kind} in the model. "
            "Set the NORM keys of the config to those it was trained with."
        )


def _kind_by_keys(inside: dict[str, set[str]], module: nn.Module, kind: str) -> str:
    """Name what the keys in a checkpoint belong to: ``kind`` if they are those of ``module``.

    ``inside``: ``{path below the module: keys}``.
    """
    found = {f"{path}.{key}".strip(".") for path, keys in inside.items() for key in keys}
    found = {key for key in found if not key.endswith("num_batches_tracked")}
    own = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    # Batch normalization in Caffe2's checkpoints is folded into weight and bias.
    if found == own or (kind == "BN" and found == {"weight", "bias"}):
        return kind
    if any(key.startswith("norm.") for key in found):
        return "a norm of torch and an activation, such as BN-ReLU"
    return _KINDS.get(frozenset(found), f"a layer with {', '.join(sorted(found))}")


def register() -> None:
    @wrap_method(Checkpointer, "_load_model")
    def load_model(original: Callable, self: Any, checkpoint: dict) -> Any:
        check_norms(self.model, checkpoint)
        return original(self, checkpoint)

    @wrap_method(Checkpointer, "save")
    def save(original: Callable, self: Any, name: str, **extra: Any) -> None:
        return original(self, name, **{"norms": norms_of(self.model), **extra})

    @wrap_method(DetectionCheckpointer, "_load_file")
    def load_file(original: Callable, self: Any, filename: str) -> dict[str, Any]:
        try:
            return original(self, filename)
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"cannot read checkpoint {filename} ({os.path.getsize(filename)} bytes): it is cut "
                f"off or no checkpoint ({reason})"
            ) from error
