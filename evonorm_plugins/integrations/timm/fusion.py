"""``fuse()``."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import fx, nn

from evonorm_plugins.conversion.api import check_model
from evonorm_plugins.errors import ConvertError
from evonorm_plugins.integrations.timm.counterparts import KINDS, counterpart
from evonorm_plugins.layers import NormAct

# What a module keeps whatever its class: its mode and its hooks.
_KEPT = nn.Module().__dict__.keys() - {
    *("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
}


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse` did, by names of modules in the model.

    Attributes:
        fused: layer of timm -> its class and the one it has now.
        left: layer of timm -> why it is left as it was.
    """

    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many of each there are."""
        return {"fused": len(self.fused), "left": len(self.left)}

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "counts": self.counts()}

    def __str__(self) -> str:
        lines = []
        for title, entries in (("layers fused", self.fused), ("layers left", self.left)):
            lines.append(f"{title}: {len(entries)}")
            lines += [f"  {key or 'the model'}: {value}" for key, value in entries.items()]
        if not (self.fused or self.left):
            lines.append("This model holds no EvoNorm, FRN or GroupNormAct of timm.")
        return "\n".join(lines)


class Fusion(NamedTuple):
    """What :func:`fuse` returns: the model that it was given and the :class:`FuseReport`."""

    model: nn.Module
    report: FuseReport


def fuse(model: nn.Module) -> Fusion:
    """Make timm's norm-activation layers in ``model`` those of this package, in place.

    Outputs, gradients and moving statistics stay what they were, up to rounding. The layers stay
    the same objects with the same parameters, buffers, hooks and mode, only their class changes: an
    optimizer goes on, and ``model.state_dict()`` is still one that timm's model loads. What cannot
    be the same in this package is left; the report says why.

    Args:
        model: any ``nn.Module``, in training or evaluation mode; one that holds no such layers is
            returned as it is.

    Returns:
        Fusion: ``(model, report)``.

    Raises:
        ConvertError: the model is scripted, traced, quantized or wrapped. Nothing has been changed.
    """
    check_model(model, "fuse")
    fused: dict[str, str] = {}
    left: dict[str, str] = {}
    found: list[tuple[nn.Module, NormAct]] = []
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            where = path or "the model"
            raise ConvertError(f"{where} is a graph of torch.fx: fuse the model it was traced from")
        if not isinstance(module, KINDS):
            continue
        ours = counterpart(module)
        if isinstance(ours, str):
            left[path] = f"{type(module).__name__}, for {ours}"
        else:
            found.append((module, ours))
            fused[path] = f"{type(module).__name__}, now {type(ours).__name__}"
    for module, ours in found:
        become(module, ours)
    return Fusion(model, FuseReport(fused, left))


def become(module: nn.Module, ours: NormAct) -> None:
    """Make ``module`` what ``ours`` is, in its own mode and with its own hooks."""
    kept = {key: value for key, value in vars(module).items() if key in _KEPT}
    module.__class__, module.__dict__ = type(ours), {**vars(ours), **kept}
