"""torchvision's detectors by name, with norm-activation layers put in by ``convert()``."""

import difflib

from torch import nn
from torchvision.models import detection, list_models, resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from evonorm_plugins.convert import convert
from evonorm_plugins.integrations.torchvision.options import OptionsError

SMALL = "maskrcnn_resnet18_fpn_small"
_FAMILIES = ("maskrcnn_", "fasterrcnn_", "retinanet_", "fcos_")
# What Options or the data decide.
_OURS = ("num_classes", "weights", "weights_backbone", "min_size", "max_size", "progress")


def list_detectors():
    """Names that :func:`build_detector` takes."""
    stock = [n for n in list_models(module=detection) if n.startswith(_FAMILIES)]
    return sorted([*stock, SMALL])


def build_detector(
    name, num_classes, norm="EvoNormS0", *, min_size=(800,), max_size=1333, model_options=None
):
    """A detector of torchvision with fresh weights.

    Args:
        name: one of :func:`list_detectors`.
        num_classes: without the background.
        norm: name of a norm-activation layer, which takes the place of norms and activations as
            :func:`evonorm_plugins.convert` says; "none" leaves torchvision's own.
        min_size, max_size: of the sides of an image, in pixels.
        model_options: further arguments of torchvision's model, by name.

    Returns:
        ``(model, report)``; report is what was converted, None for "none".

    Raises:
        OptionsError: unknown model or options.
        ConvertError: unknown norm.
    """
    known = list_detectors()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise OptionsError(f"model {name!r} is not one of {', '.join(known)}{hint}")
    options = dict(model_options or {})
    ours = [key for key in options if key in _OURS]
    if ours:
        raise OptionsError(f"{ours[0]} is no option of the model that can be given here")
    options.update(min_size=tuple(min_size), max_size=max_size)
    try:
        if name == SMALL:
            model = _small_mask_rcnn(num_classes + 1, **options)
        else:
            build = getattr(detection, name)
            model = build(
                weights=None, weights_backbone=None, num_classes=num_classes + 1, **options
            )
    except TypeError as error:
        raise OptionsError(f"options of {name}: {error}") from error
    if norm == "none":
        return model, None
    model, report = convert(model, norm)
    for module in model.modules():  # WORKAROUND
        if type(module).__name__ == "MultiScaleRoIAlign":
            module.scales = module.map_levels = None
    return model, report


def _small_mask_rcnn(num_classes, **options):
    """R-18, FPN and heads of 64 channels, anchors of 8 to 128 pixels: for a CPU and small images.

    Norms are where the paper's Mask R-CNN has them: backbone, FPN, box and mask head.
    """
    channels, fc, bn = 64, 256, nn.BatchNorm2d
    body = resnet18(weights=None)
    widths = [64, 128, 256, 512]
    layers = {f"layer{k + 1}": str(k) for k in range(4)}
    backbone = BackboneWithFPN(body, layers, widths, channels, norm_layer=bn)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5)
    few = {
        "rpn_batch_size_per_image": 64,
        "rpn_pre_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 50,
        "box_batch_size_per_image": 32,
        "box_positive_fraction": 0.5,
    }
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0]),
        box_head=FastRCNNConvFCHead((channels, 7, 7), [channels] * 2, [fc], norm_layer=bn),
        box_predictor=FastRCNNPredictor(fc, num_classes),
        mask_head=MaskRCNNHeads(channels, [channels] * 2, 1, norm_layer=bn),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        **{**few, **options},
    )
