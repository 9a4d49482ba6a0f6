"""The Mask R-CNN that the paper's Table 4 counts, as components of Detectron2's registries.

It is the one of the authors' TensorFlow code (tensorflow/tpu, models/official/detection), and
differs from Detectron2's in: P6 is a stride-2 convolution of P5; FPN's convolutions have a bias,
and a norm without activation stands on the five outputs alone; the RPN has a norm-activation for
each level behind its shared convolution; in the heads every layer, the fully connected one and the
deconvolution too, has a bias and a norm-activation; box regression and masks have a (never trained)
output for the background.

Every ``NORM`` is a stock name (then followed by ReLU) or a registered one. Detectron2's configs
have none for the RPN: its norm is that of ``MODEL.FPN.NORM``, or of ``MODEL.RPN.NORM`` in a config
that has got this key by :func:`~evonorm_plugins.integrations.detectron2.add_evonorm_config`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    Backbone,
    StandardROIHeads,
    build_resnet_backbone,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, FastRCNNOutputLayers
from torch import nn

from evonorm_plugins.integrations.detectron2.norms import checked_norm
from evonorm_plugins.registry import get_norm_act, is_norm_act


def norm_act(
    norm: str | Callable[[int], nn.Module], channels: int, apply_act: bool = True
) -> nn.Module:
    """A norm and its activation for ``(N, C, H, W)``, by a stock or a registered name."""
    if isinstance(norm, str) and is_norm_act(checked_norm(norm)):
        return get_norm_act(norm, channels, apply_act=apply_act)
    layer = get_norm(norm, channels) or nn.Identity()
    return nn.Sequential(layer, nn.ReLU()) if apply_act else layer


class PaperFPN(Backbone):
    """Feature pyramid with levels P2 to P6.

    Args:
        bottom_up: backbone with ``in_features`` of strides 4, 8, 16, 32.
        in_features: their names, finest first.
        out_channels: channels of every level.
        norm: of the five outputs, without activation.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str | Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        levels = range(2, 2 + len(in_features))
        self.lateral = nn.ModuleList(
            nn.Conv2d(shapes[f].channels, out_channels, 1) for f in in_features
        )
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in levels
        )
        self.coarsest = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(
            norm_act(norm, out_channels, apply_act=False) for _ in range(len(levels) + 1)
        )
        for conv in (*self.lateral, *self.output, self.coarsest):
            weight_init.c2_xavier_fill(conv)
        names = [f"p{level}" for level in (*levels, levels[-1] + 1)]
        strides = [shapes[f].stride for f in in_features]
        self._out_features = names
        self._out_feature_strides = dict(zip(names, [*strides, strides[-1] * 2], strict=True))
        self._out_feature_channels = dict.fromkeys(names, out_channels)

    @property
    def size_divisibility(self) -> int:
        # That of the coarsest input: the top-down path doubles sizes exactly.
        return self._out_feature_strides[self._out_features[-2]]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image ``(N, 3, H, W)`` to ``{"p2": (N, C, H/4, W/4), ...}``."""
        features = self.bottom_up(x)
        lateral = [
            conv(features[f]) for conv, f in zip(self.lateral, self.in_features, strict=True)
        ]
        merged = [lateral.pop()]
        while lateral:
            above = F.interpolate(merged[0], scale_factor=2.0, mode="nearest")
            merged.insert(0, lateral.pop() + above)
        outputs = [conv(m) for conv, m in zip(self.output, merged, strict=True)]
        outputs.append(self.coarsest(outputs[-1]))
        outputs = [norm(y) for norm, y in zip(self.norms, outputs, strict=True)]
        return dict(zip(self._out_features, outputs, strict=True))


def build_resnet_paper_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PaperFPN:
    """ResNet v1 with :class:`PaperFPN`, from ``MODEL.RESNETS`` and ``MODEL.FPN``."""
    return PaperFPN(
        build_resnet_backbone(cfg, input_shape),
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        cfg.MODEL.FPN.NORM,
    )


class PaperRPNHead(nn.Module):
    """RPN head whose convolutions are shared by the levels and whose norms are not."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        box_dim: int,
        num_levels: int,
        norm: str | Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.norm_acts = nn.ModuleList(norm_act(norm, in_channels) for _ in range(num_levels))
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * box_dim, 1)
        for conv in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        options = StandardRPNHead.from_config(cfg, input_shape)
        del options["conv_dims"]
        norm = cfg.MODEL.RPN.get("NORM")
        norm = cfg.MODEL.FPN.NORM if norm is None else norm
        return {**options, "num_levels": len(input_shape), "norm": norm}

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """List of L ``(N, C, H, W)`` to two lists of L: logits ``(N, A, H, W)``, deltas."""
        hidden = [norm(self.conv(x)) for norm, x in zip(self.norm_acts, features, strict=True)]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


def _conv_norm_acts(
    channels: int, conv_dims: Sequence[int], norm: str | Callable[[int], nn.Module]
) -> tuple[list[nn.Module], int]:
    layers = []
    for dim in conv_dims:
        conv = nn.Conv2d(channels, dim, 3, padding=1)
        weight_init.c2_msra_fill(conv)
        layers += [conv, norm_act(norm, dim)]
        channels = dim
    return layers, channels


class PaperBoxHead(nn.Module):
    """Convolutions, then fully connected layers, a norm-activation behind each."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int],
        fc_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        convs, channels = _conv_norm_acts(input_shape.channels, conv_dims, norm)
        self.convs = nn.Sequential(*convs)
        features = channels * input_shape.height * input_shape.width
        self.fcs, self.fc_norm_acts = nn.ModuleList(), nn.ModuleList()
        for dim in fc_dims:
            self.fcs.append(nn.Linear(features, dim))
            weight_init.c2_xavier_fill(self.fcs[-1])
            self.fc_norm_acts.append(norm_act(norm, dim))
            features = dim
        self.output_shape = ShapeSpec(channels=features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "norm": head.NORM,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(R, C, H, W)`` to ``(R, D)``."""
        x = self.convs(x).flatten(1)
        for fc, norm in zip(self.fcs, self.fc_norm_acts, strict=True):
            x = norm(fc(x)[:, :, None, None]).flatten(1)
        return x


class PaperMaskHead(BaseMaskRCNNHead):
    """Convolutions and a deconvolution, a norm-activation behind each; K + 1 masks."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        convs, channels = _conv_norm_acts(input_shape.channels, conv_dims[:-1], norm)
        deconv = nn.ConvTranspose2d(channels, conv_dims[-1], 2, stride=2)
        predictor = nn.Conv2d(conv_dims[-1], num_classes + 1, 1)
        for layer in (deconv, predictor):
            weight_init.c2_msra_fill(layer)
        self.net = nn.Sequential(*convs, deconv, norm_act(norm, conv_dims[-1]), predictor)

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """``(R, C, H, W)`` to logits ``(R, K + 1, 2 H, 2 W)``."""
        return self.net(x)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "norm": head.NORM,
        }


class PaperFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Box predictor with four more outputs, the deltas of the background, which nothing uses."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, **options: Any) -> None:
        super().__init__(input_shape, **options)
        self.box_outputs = self.bbox_pred.out_features
        box_dim = len(self.box2box_transform.weights)
        self.bbox_pred: nn.Linear = nn.Linear(
            self.bbox_pred.in_features, self.box_outputs + box_dim
        )
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(R, D)`` to scores ``(R, K + 1)`` and deltas ``(R, 4 K)``."""
        scores, deltas = super().forward(x)
        return scores, deltas[:, : self.box_outputs]


class PaperROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with :class:`PaperFastRCNNOutputLayers`."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        options = super()._init_box_head(cfg, input_shape)
        shape = options["box_head"].output_shape
        return {**options, "box_predictor": PaperFastRCNNOutputLayers(cfg, shape)}


_COMPONENTS = (
    (BACKBONE_REGISTRY, build_resnet_paper_fpn_backbone),
    (RPN_HEAD_REGISTRY, PaperRPNHead),
    (ROI_BOX_HEAD_REGISTRY, PaperBoxHead),
    (ROI_MASK_HEAD_REGISTRY, PaperMaskHead),
    (ROI_HEADS_REGISTRY, PaperROIHeads),
)


def register() -> None:
    """Enter the components into Detectron2's registries."""
    for registry, component in _COMPONENTS:
        registry.register(component)


def unregister() -> None:
    """Remove the components from Detectron2's registries."""
    for registry, component in _COMPONENTS:
        del registry._obj_map[component.__name__]
