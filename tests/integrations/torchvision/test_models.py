import pytest
import torch
from torch import nn

from evonorm_plugins import EvoNormS0, NormAct
from evonorm_plugins.errors import ConfigError, ConvertError
from evonorm_plugins.integrations.model_norms import census
from evonorm_plugins.integrations.torchvision import build_detector, list_detectors

SMALL = "maskrcnn_resnet18_fpn_small"


def test_the_small_mask_rcnn():
    with torch.device("meta"):
        model, report = build_detector(SMALL, 4, "EvoNormS0(groups=16)")
    assert census(model).splitlines() == [
        "backbone.body        11 EvoNormS0 without activation, 9 EvoNormS0(groups=16)",
        "backbone.fpn         8 EvoNormS0 without activation",
        "roi_heads.box_head   2 EvoNormS0(groups=16)",
        "roi_heads.mask_head  2 EvoNormS0(groups=16)",
    ]
    assert report.counts()["replaced"] == 13
    assert model.roi_heads.box_predictor.cls_score.out_features == 5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_torchvisions_own_norms():
    model, report = build_detector(SMALL, 4, "none")
    assert report is None
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 32
    assert not any(isinstance(m, NormAct) for m in model.modules())


def test_list():
    names = list_detectors()
    assert {SMALL, "maskrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn"} < set(names)
    assert "keypointrcnn_resnet50_fpn" not in names


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn_v2"]
)
def test_one_step_and_inference(name):
    model, _ = build_detector(name, 3, "EvoNormS0", min_size=(64,), max_size=64)
    assert any(isinstance(m, EvoNormS0) and m.apply_act for m in model.modules())
    target = {"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([3])}
    losses = model([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    (output,) = model.eval()([torch.rand(3, 48, 64)])
    assert set(output) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "maskrcnn_resnet50_fpn_v3",
            {},
            r"did you mean maskrcnn_resnet50_fpn_v2\?",
        ),
        ("resnet50", {}, "model 'resnet50' is not one of fasterrcnn_"),
        (SMALL, {"num_classes": 7}, "'num_classes' is no option of maskrcnn_resnet18_fpn_small"),
        ("fcos_resnet50_fpn", {"nms_tresh": 7}, r"no option of fcos.*did you mean nms_thresh\?"),
        (
            "fasterrcnn_resnet50_fpn",
            {"rpn_anchor_generator": 7},
            "options of fasterrcnn_resnet50_fpn: rpn_anchor_generator should be of type",
        ),
    ],
)
def test_unknown_models_and_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(name, 4, model_options=options)


def test_unknown_norm():
    with pytest.raises(ConvertError, match="EvoNormX0"):
        build_detector(SMALL, 4, "EvoNormX0")
