"""Registered names as ``NORM`` options, placed by the paper's rule.

Where a norm is followed by an activation, the norm-activation layer replaces both; where it is not,
it takes its form without activation (an affine transform for EvoNorms). Detectron2 builds its
modules as always; at the end of each constructor the norm-activation layers that it asked for are
put in their place. Modules without one are left exactly as they were.
"""

import contextvars
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2 import layers as d2_layers
from detectron2.modeling import backbone, meta_arch, roi_heads
from detectron2.modeling.backbone import regnet, vit
from torch import nn

from evonorm_plugins.errors import UnknownNormError
from evonorm_plugins.integrations.detectron2.blocks import NORM_ACT_BLOCKS
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.patch import (
    copy_function,
    redirect,
    wrap_method,
)
from evonorm_plugins.layers import BatchDependent, NormAct
from evonorm_plugins.registry import get_norm_act, is_norm_act, list_norm_acts

_Class = TypeVar("_Class", bound=type)
STOCK_NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus,
)  # fmt: skip

# (module, its norm-activation layers so far) of the constructor that is running.
_construction: contextvars.ContextVar[tuple[nn.Module, list[NormAct]] | None]
_construction = contextvars.ContextVar("construction", default=None)
_stock_get_norm = copy_function(d2_layers.get_norm)


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    if isinstance(norm, str) and norm and norm not in STOCK_NORMS:
        layer = get_norm_act(checked_norm(norm), out_channels)
    else:
        layer = _stock_get_norm(norm, out_channels)
    if isinstance(layer, NormAct):
        construction = _construction.get()
        if construction is None:
            raise ValueError(
                f"NORM {norm!r} holds an activation, and the class that asks for it is not one "
                "whose activations are known. Decorate that class with "
                "evonorm_plugins.integrations.detectron2.adapt, or write it with "
                "evonorm_plugins.get_norm_act and without the activation."
            )
        construction[1].append(layer)
    return layer


def checked_norm(norm: Any) -> str:
    """``norm`` if it is the name of a stock or a registered norm.

    Raises:
        UnknownNormError: it is not; the message lists the known ones.
    """
    if norm in ("", *STOCK_NORMS) or is_norm_act(norm):
        return norm
    raise UnknownNormError(
        f"unknown NORM {norm!r}; Detectron2 has {', '.join(STOCK_NORMS)}; "
        f"evonorm_plugins adds {', '.join(list_norm_acts())}, and paths of layer graphs (.json)"
    )


def adapt(cls: _Class) -> _Class:
    """Class decorator: the module's norm-activation layers are placed when it is built.

    For modules that apply their children in order, or that give norm and activation to Detectron2's
    convolutions as ``norm=`` and ``activation=``. An activation written into ``forward`` cannot be
    seen: use ``evonorm_plugins.get_norm_act`` in such a class.
    """

    @wrap_method(cls, "__init__")
    def build(original: Callable, self: nn.Module, *args: Any, **kwargs: Any) -> None:
        outer = _construction.get()
        if outer is not None and outer[0] is self:
            # The constructor of a parent class: the one that called it places everything.
            return original(self, *args, **kwargs)
        norms: list[NormAct] = []
        token = _construction.set((self, norms))
        try:
            original(self, *args, **kwargs)
        finally:
            _construction.reset(token)
        if norms:
            _place(self, {id(norm) for norm in norms})

    return cls


def _place(module: nn.Module, norms: set[int]) -> None:
    block = next((b for b in NORM_ACT_BLOCKS if isinstance(module, b)), None)
    if block is None:
        _place_in_order(module, norms)
        return
    variant, followed = NORM_ACT_BLOCKS[block]
    if type(module) is block:
        module.__class__ = variant
    elif not isinstance(module, variant):
        raise TypeError(
            f"{type(module).__name__} extends {block.__name__}, whose forward applies ReLUs that a "
            f"norm-activation layer makes superfluous; extend {variant.__name__} instead"
        )
    for name, child in module.named_children():
        norm = getattr(child, "norm", None)
        if name not in followed and isinstance(norm, NormAct) and id(norm) in norms:
            child.norm = norm.without_activation()


def _place_in_order(module: nn.Module, norms: set[int]) -> None:
    """Apply the rule to a module whose children run in order, and to theirs."""
    norm = getattr(module, "norm", None)
    if isinstance(norm, NormAct) and id(norm) in norms and hasattr(module, "activation"):
        if module.activation is None:
            module.norm = norm.without_activation()
        module.activation = None  # type: ignore[assignment]
        return
    children = list(module.named_children())
    followers = [*children, ("", None)][1:]
    for (name, child), (next_name, following) in zip(children, followers, strict=True):
        if not (isinstance(child, NormAct) and id(child) in norms):
            _place_in_order(child, norms)
        elif isinstance(following, _ACTIVATIONS):
            setattr(module, next_name, nn.Identity())
        else:
            setattr(module, name, child.without_activation())


def _freeze(original: Callable, self: nn.Module) -> nn.Module:
    original(self)
    for module in self.modules():
        if isinstance(module, BatchDependent):
            module.freeze()
    return self


def _warn_shared_statistics(original: Callable, self: nn.Module, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    layers = (m for m in self.modules() if isinstance(m, BatchDependent) and m.uses_batch())
    shared = {type(m).__name__ for m in layers}
    if shared:
        logger.warning(
            "RetinaNet's head is shared by all levels, and so are the moving statistics of its "
            f"{', '.join(sorted(shared))}: inference may be poor; the S series has none."
        )


def register() -> None:
    """Make every registered name a ``NORM`` of Detectron2's modules."""
    redirect(d2_layers.get_norm, get_norm)
    wrap_method(d2_layers.CNNBlockBase, "freeze")(_freeze)
    for cls in (
        *NORM_ACT_BLOCKS,
        backbone.FPN,
        backbone.SimpleFeaturePyramid,
        vit.ResBottleneckBlock,
        regnet.ResStem,
        regnet.SimpleStem,
        regnet.VanillaBlock,
        regnet.BasicTransform,
        regnet.BottleneckTransform,
        regnet.ResBasicBlock,
        regnet.ResBottleneckBlock,
        roi_heads.FastRCNNConvFCHead,
        roi_heads.MaskRCNNConvUpsampleHead,
        meta_arch.retinanet.RetinaNetHead,
        meta_arch.semantic_seg.SemSegFPNHead,
        d2_layers.ASPP,
        d2_layers.DepthwiseSeparableConv2d,
    ):
        adapt(cls)
    wrap_method(meta_arch.retinanet.RetinaNetHead, "__init__")(_warn_shared_statistics)
