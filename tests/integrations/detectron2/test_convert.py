"""convert() of a model of Detectron2 puts layers where the plugin puts them."""

import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

import evonorm_plugins.integrations.detectron2  # noqa: F401
from evonorm_plugins import convert
from evonorm_plugins.integrations.model_norms import norms_of


def mask_rcnn(norm):
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 2
    for part in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        part.NORM = norm
    return build_model(cfg)


def test_same_places_as_the_plugin():
    converted, report = convert(mask_rcnn("BN"), "EvoNormS0")
    # The plugin keeps norm-activation layers where the norm was, under the same names.
    assert norms_of(converted) == norms_of(mask_rcnn("EvoNormS0"))
    counts = report.counts()
    assert (counts["replaced"], counts["affine"]) == (33 + 2 + 4, 20 + 8)
    image = torch.rand(1, 3, 64, 64)
    assert all(torch.isfinite(y).all() for y in converted.backbone(image).values())
