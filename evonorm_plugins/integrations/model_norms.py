"""The norms of every part of a model."""

from collections import Counter

from torch import nn

from evonorm_plugins.layers import NormAct

_TORCH_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
# Of Detectron2 and torchvision, which need not be installed.
_FROZEN = "FrozenBatchNorm2d"
_OTHER_NORMS = (_FROZEN, "LayerNorm")
# Parts that are counted by themselves; whatever lies elsewhere goes to its first two names.
_PARTS = (
    *("backbone.bottom_up", "backbone.body", "backbone.fpn"),
    *("roi_heads.box_head", "roi_heads.mask_head"),
)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, or a norm-activation layer."""
    return isinstance(module, (NormAct, *_TORCH_NORMS)) or type(module).__name__ in _OTHER_NORMS


def norms_of(model: nn.Module) -> dict[str, str]:
    """``{module name: description}`` of every norm, the one inside a norm-activation layer aside.

    A description tells what a checkpoint must agree on: the class, the groups of the S series and
    of group normalization, and the digest of a layer graph. Cross-replica layers are described as
    their plain counterparts.
    """
    norms: dict[str, str] = {}
    for name, module in model.named_modules():
        inside_another = name.rpartition(".")[0] in norms
        if is_norm(module) and not inside_another:
            norms[name] = _describe(module)
    return norms


def _describe(norm: nn.Module) -> str:
    kind = type(norm).__name__
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) or kind == _FROZEN:
        return "BN"
    if isinstance(norm, nn.GroupNorm):
        return f"GN(groups={norm.num_groups})"
    return norm.describe() if isinstance(norm, NormAct) else kind


def census(model: nn.Module) -> str:
    """One line for each part of the model: how many norms of which kind it has."""
    parts: dict[str, Counter] = {}
    for name, kind in norms_of(model).items():
        part = next((p for p in _PARTS if name.startswith(p + ".")), None)
        part = part or ".".join(name.split(".")[: 2 if name.startswith("roi_heads") else 1])
        parts.setdefault(part, Counter())[kind] += 1
    width = max(map(len, parts), default=0)
    return "\n".join(
        f"{part:<{width}}  " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
        for part, counts in parts.items()
    )
