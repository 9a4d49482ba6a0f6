"""torchvision's detectors by name, with norm-activation layers put in by ``convert()``."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torchvision.models import detection, list_models, resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
    FasterRCNN,
    FastRCNNConvFCHead,
    FastRCNNPredictor,
)
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from evonorm_plugins.conversion import convert
from evonorm_plugins.conversion.report import Report
from evonorm_plugins.errors import ConfigError

SMALL = "maskrcnn_resnet18_fpn_small"
# Beginning of a name -> classes whose arguments are options of the model.
_FAMILIES = {
    "maskrcnn_": (MaskRCNN, FasterRCNN, GeneralizedRCNNTransform),
    "fasterrcnn_": (FasterRCNN, GeneralizedRCNNTransform),
    "retinanet_": (RetinaNet, GeneralizedRCNNTransform),
    "fcos_": (FCOS, GeneralizedRCNNTransform),
}
# Not these: Options, the data or the model itself decide them.
_DECIDED = {"self", "backbone", "num_classes", "min_size", "max_size", "kwargs"}


def list_detectors() -> list[str]:
    """Names that :func:`build_detector` takes."""
    stock = [n for n in list_models(module=detection) if n.startswith(tuple(_FAMILIES))]
    return sorted([*stock, SMALL])


def build_detector(
    name: str,
    num_classes: int,
    norm: str = "EvoNormS0",
    *,
    min_size: Sequence[int] = (800,),
    max_size: int = 1333,
    model_options: dict | None = None,
) -> tuple[nn.Module, Report | None]:
    """A detector of torchvision with fresh weights.

    Args:
        name: one of :func:`list_detectors`.
        num_classes: without the background.
        norm: name of a norm-activation layer, which takes the place of norms and activations as
            :func:`evonorm_plugins.conversion` says; "none" leaves torchvision's own.
        min_size, max_size: of the sides of an image, in pixels.
        model_options: further arguments of torchvision's model, by name.

    Returns:
        ``(model, report)``; report is what was converted, None for "none".

    Raises:
        ConfigError: unknown model or options.
        ConvertError: unknown norm.
    """
    known = list_detectors()
    if name not in known:
        raise ConfigError(f"model {name!r} is not one of {', '.join(known)}{_hint(name, known)}")
    options = dict(model_options or {})
    _check_options(name, options)
    options.update(min_size=tuple(min_size), max_size=max_size)
    try:
        if name == SMALL:
            model = _small_mask_rcnn(num_classes + 1, **options)
        else:
            fresh = {"weights": None, "weights_backbone": None, "num_classes": num_classes + 1}
            model = getattr(detection, name)(**fresh, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options of {name}: {error}") from error
    return (model, None) if norm == "none" else convert(model, norm)


def _check_options(name: str, options: dict) -> None:
    # torchvision takes any name, does nothing with one that it does not know, and looks at values
    # when they are used.
    family = next(classes for start, classes in _FAMILIES.items() if name.startswith(start))
    parameters = {k: p for c in family for k, p in inspect.signature(c.__init__).parameters.items()}
    known = parameters.keys() - _DECIDED
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"{key!r} is no option of {name}; there are {', '.join(sorted(known))}"
                f"{_hint(key, known)}"
            )
        wants_number = isinstance(parameters[key].default, int | float)
        if isinstance(value, str) or (wants_number and not isinstance(value, int | float)):
            raise ConfigError(f"{key}={value!r} is not a number")


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _small_mask_rcnn(num_classes: int, **options: Any) -> MaskRCNN:
    """R-18, FPN and heads of 64 channels, anchors of 8 to 128 pixels: for a CPU and small images.

    Norms are where the Detectron2 configs have them: backbone, FPN, box and mask head.
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
