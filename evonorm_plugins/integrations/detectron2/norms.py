"""Registered names as ``NORM`` options, placed by the paper's rule.

Where a norm is followed by an activation, the norm-activation layer replaces both; where it is not,
it takes its form without activation (an affine transform for EvoNorms). Detectron2 builds its
modules as always; at the end of each constructor the norm-activation layers that it asked for are
put in their place. Modules without one are left exactly as they were.
"""

import contextvars
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2 import layers as d2_layers
from detectron2.modeling import backbone, meta_arch, roi_heads
from detectron2.modeling.backbone import regnet, vit
from torch import nn

from evonorm_plugins.errors import ConvertError, UnknownNormError
from evonorm_plugins.integrations.detectron2.blocks import NORM_ACT_BLOCKS
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.placement import place_by_flow
from evonorm_plugins.integrations.detectron2.refusal import asking, refuse
from evonorm_plugins.integrations.patch import (
    copy_function,
    redirect,
    wrap_method,
)
from evonorm_plugins.layers import BatchDependent, NormAct
from evonorm_plugins.registry import get_norm_act, is_norm_act, list_norm_acts

_Class = TypeVar("_Class", bound=type)
STOCK_NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

# (module, its norm-activation layers so far) of the constructor that is running.
_construction: contextvars.ContextVar[tuple[nn.Module, list[NormAct]] | None]
_construction = contextvars.ContextVar("construction", default=None)
_stock_get_norm = copy_function(d2_layers.get_norm)
_convert = d2_layers.FrozenBatchNorm2d.convert_frozen_batchnorm.__func__
_stock_convert = copy_function(_convert)


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    if isinstance(norm, str) and norm and norm not in STOCK_NORMS:
        layer = get_norm_act(checked_norm(norm), out_channels)
    else:
        layer = _stock_get_norm(norm, out_channels)
    if isinstance(layer, NormAct):
        construction = _construction.get()
        if construction is None:
            raise refuse(asking(), str(norm), "nothing tells what follows its norms")
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

    Where an activation follows, a layer takes its place; where none does, it becomes the affine
    transform. What follows is read from the data flow of ``forward``, which is traced, in both
    modes; of a forward that cannot be traced, from those of its parts, and the order of children
    where that leaves no doubt. The activations must be modules, or given to Detectron2's
    convolutions as ``activation=``. Sigmoids, tanhs and their kin are no activations that a layer
    replaces: before them stands the affine transform. So it does at the end of ``forward``: what
    the caller does to its output is seen by :func:`verify` alone.

    Raises:
        ConfigError: when the module is built, where that cannot be done or is not clear; names the
            class, the config key, the norm and why.
    """

    kind: Any = cls
    if "__init__" not in vars(kind):

        @functools.wraps(kind.__init__)
        def inherited(self: Any, *args: Any, **kwargs: Any) -> None:
            super(kind, self).__init__(*args, **kwargs)

        kind.__init__ = inherited

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
            _place(self, norms)

    return cls


def adapt_block(
    block: type[nn.Module], variant: type[nn.Module], followed: tuple[str, ...]
) -> None:
    """Make ``variant`` of ``block`` wherever it holds norm-activation layers.

    Args:
        block: a class whose forward applies activations behind the norms of its convolutions.
        variant: the subclass whose forward leaves them out.
        followed: names of the convolutions whose norm an activation follows.
    """
    NORM_ACT_BLOCKS[block] = (variant, followed)
    adapt(block)


def _place(module: nn.Module, norms: list[NormAct]) -> None:
    block = next((b for b in NORM_ACT_BLOCKS if isinstance(module, b)), None)
    if block is None:
        try:
            place_by_flow(module, norms)
        except ConvertError as error:
            raise refuse(type(module).__name__, type(norms[0]).__name__, str(error)) from error
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
        norm = next((n for n in norms if n is getattr(child, "norm", None)), None)
        if norm is not None and name not in followed:
            child.norm = norm.without_activation()


def _convert_frozen(cls: type, module: nn.Module) -> nn.Module:
    if isinstance(module, BatchDependent):
        return module.freeze()
    return _stock_convert(cls, module)


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
    # Freezing a block converts its norms, and so does TridentNet with its stem.
    redirect(_convert, _convert_frozen)
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
