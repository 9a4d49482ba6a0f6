"""Refuse checkpoints that were trained with another norm, or drop their norms on purpose.

Detectron2 loads what fits and warns about the rest, and such a model detects nothing. Models
without one of this package's layers load as they always do.
"""

import contextlib
import contextvars
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.model_norms import norms_of
from evonorm_plugins.integrations.patch import wrap_method
from evonorm_plugins.layers import NormAct

# Keys of a norm in a checkpoint -> what they may belong to.
_KINDS = {
    frozenset({"weight", "bias"}): "GN, LN, EvoNormS1, EvoNormS2 or a frozen affine transform",
    frozenset({"weight", "bias", "running_mean", "running_var"}): "BN",
    frozenset({"weight", "bias", "v"}): "EvoNormS0 or FRN",
    frozenset({"weight", "bias", "v", "running_var"}): "EvoNormB0",
    frozenset({"weight", "bias", "running_var"}): "EvoNormB1 or EvoNormB2",
}
_dropping = contextvars.ContextVar("dropping", default=False)


@contextlib.contextmanager
def dropping_norms() -> Iterator[None]:
    """Checkpoints of another norm are loaded within, without their norms.

    For a model with norm-activation layers that starts from the convolutions of one that was
    trained with another norm, such as a backbone with batch normalization. The norms that differ
    keep the values they have in the model; how many those are, and what they were, is logged.
    """
    token = _dropping.set(True)
    try:
        yield
    finally:
        _dropping.reset(token)


class _Norm(NamedTuple):
    """A norm of a model, of which a checkpoint has something."""

    name: str
    was: str
    kind: str
    recorded: bool  # whether the checkpoint says what it was
    keys: list[str]  # of the checkpoint

    @property
    def differs(self) -> bool:
        return self.was != self.kind


def recorded_norms(checkpoint: dict) -> dict[str, str]:
    """``{module name: description}`` of the norm-activation layers, as far as a checkpoint tells.

    Args:
        checkpoint: what was loaded. The state of a norm-activation layer tells it in its metadata,
            beside torch's version numbers. Before, this package's checkpoints had ``norms``.
    """
    metadata = getattr(checkpoint["model"], "_metadata", {})
    norms = {name: entry["norm"] for name, entry in metadata.items() if "norm" in entry}
    if not norms and _is_former_record(checkpoint.get("norms"), checkpoint["model"]):
        norms = checkpoint["norms"]
    return {name.removeprefix("module."): kind for name, kind in norms.items()}


def _is_former_record(norms: Any, weights: dict) -> bool:
    """Whether ``norms`` is what this package saved under that name, and no one else."""
    if not (isinstance(norms, dict) and norms):
        return False
    if not all(isinstance(text, str) for pair in norms.items() for text in pair):
        return False
    modules = {key.removeprefix("module.").rpartition(".")[0] for key in weights}
    return modules.issuperset(norms)


def has_norm_acts(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(isinstance(m, NormAct) for m in model.modules())


def check_norms(model: nn.Module, checkpoint: dict) -> None:
    """Compare the norms of a checkpoint with those of the model it is loaded into.

    Within :func:`dropping_norms`, those that differ are removed from ``checkpoint["model"]``.

    Args:
        checkpoint: what was loaded: ``model``, and whatever else there is.

    Raises:
        CheckpointError: a norm of the model was another one in the checkpoint; names both.
    """
    compared = _compared(model, checkpoint)
    wrong = [norm for norm in compared if norm.differs]
    if not wrong:
        return
    if _dropping.get():
        _drop(compared, checkpoint)
        return
    # One with its activation, if there is one, tells most.
    first = min(wrong, key=lambda norm: "without activation" in norm.was + norm.kind)
    raise CheckpointError(
        f"the checkpoint was trained with another norm: {len(wrong)} of {len(compared)} norms "
        f"differ, first {first.name}: {first.was} in the checkpoint, {first.kind} in the model. "
        "Set the NORM keys of the config to those it was trained with; or, to keep its "
        "convolutions and drop its norms, load it within "
        "evonorm_plugins.integrations.detectron2.dropping_norms(), which is --drop-norms of "
        "tools/train_net.py"
    )


def _compared(model: nn.Module, checkpoint: dict) -> list[_Norm]:
    saved = recorded_norms(checkpoint)
    metadata = getattr(checkpoint["model"], "_metadata", {})
    silent = {name.removeprefix("module.") for name in metadata} - saved.keys()
    keys: dict[str, list[str]] = defaultdict(list)
    for key in checkpoint["model"]:
        keys[key.removeprefix("module.").rpartition(".")[0]].append(key)
    found = []
    for name, kind in norms_of(model).items():
        inside = {
            p.removeprefix(name).strip("."): list(k)
            for p, k in keys.items()
            if p == name or p.startswith(name + ".")
        }
        if checkpoint.get("matching_heuristics"):
            # Keys that found no place in the model have kept a name that lacks its first parts.
            left = [key for p, k in keys.items() if p and name.endswith("." + p) for key in k]
            inside[""] = [*inside.get("", ()), *left]
        every = [key for some in inside.values() for key in some]
        if not every:
            continue  # the checkpoint is of a part of the model
        leaves = {path: {k.rpartition(".")[2] for k in some} for path, some in inside.items()}
        module = model.get_submodule(name)
        was = saved.get(name) or _kind_by_keys(leaves, module, kind)
        if was == kind and name in silent and _has_keys_of_others(module):
            was = "GN, LN or a frozen affine transform"
        found.append(_Norm(name, was, kind, name in saved, every))
    return found


def _has_keys_of_others(module: nn.Module) -> bool:
    """Whether only its own word tells a norm-activation layer from a norm of torch."""
    if not (isinstance(module, NormAct) and module.apply_act):
        return False
    return module.state_dict().keys() == {"weight", "bias"}


def _drop(compared: list[_Norm], checkpoint: dict) -> None:
    """Remove the norms that differ, and those that may differ, from a checkpoint."""
    # The keys of an affine transform are those of many a norm.
    dropped = [
        norm
        for norm in compared
        if norm.differs or (not norm.recorded and "without activation" in norm.kind)
    ]
    for key in {key for norm in dropped for key in norm.keys}:
        del checkpoint["model"][key]
    kinds = Counter((norm.was if norm.differs else "unknown", norm.kind) for norm in dropped)
    said = "; ".join(f"{n} were {was}, are {kind}" for (was, kind), n in kinds.most_common())
    logger.warning(
        "%d of the checkpoint's %d norms are dropped, the model's keep their values: %s. "
        "%d other arrays are kept.",
        *(len(dropped), len(compared), said, len(checkpoint["model"])),
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
        if has_norm_acts(self.model):
            try:
                check_norms(self.model, checkpoint)
            except CheckpointError:
                # Detectron2's checkpointer takes this for a load that has not ended.
                if hasattr(self, "_parsed_url_during_load"):
                    self._parsed_url_during_load = None
                raise
            former = "norms" not in self.checkpointables and checkpoint.get("norms")
            if former and _is_former_record(former, checkpoint["model"]):
                del checkpoint["norms"]  # or the caller would save it with other weights
        return original(self, checkpoint)
