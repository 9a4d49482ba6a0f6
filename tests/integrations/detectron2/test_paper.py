"""The layout that the paper's Table 4 counts, and the configs of the table."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from evonorm_plugins.integrations.detectron2.paper import PaperRPNHead
from evonorm_plugins.layers import NormAct

CONFIGS = Path(__file__).parents[3] / "detectron_configs"
PAPER = (
    "MODEL.BACKBONE.NAME", "build_resnet_paper_fpn_backbone",
    "MODEL.RPN.HEAD_NAME", "PaperRPNHead",
    "MODEL.ROI_HEADS.NAME", "PaperROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME", "PaperBoxHead",
    "MODEL.ROI_MASK_HEAD.NAME", "PaperMaskHead",
)  # fmt: skip


def from_file(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    return cfg


def build_on_meta(cfg):
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("R_50_FPN_BN", 46_367_089),
        ("R_50_FPN_EvoNormB0", 46_379_313),
        ("R_50_FPN_GN", 46_367_089),
        ("R_50_FPN_EvoNormS0", 46_379_313),
        ("R_101_FPN_BN", 65_359_217),
        ("R_101_FPN_EvoNormB0", 65_380_145),
        ("R_101_FPN_GN", 65_359_217),
        ("R_101_FPN_EvoNormS0", 65_380_145),
    ],
)
def test_parameters_of_table_4(config, parameters):
    model = build_on_meta(from_file(CONFIGS / f"paper/mask_rcnn_{config}.yaml"))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[ps]*/*.yaml")), ids=lambda p: p.stem)
def test_configs_of_table_4_hold_its_recipe(path):
    cfg = from_file(path)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.BASE_LR) == (64, 135_000, 0.1)
    assert (solver.STEPS, solver.GAMMA) == ((120_000, 125_000), 0.1)
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.9, 4e-5)
    assert cfg.MODEL.WEIGHTS == ""
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((1024,), 1024)
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC) == (4, 1)
    depth, norm = path.stem.removeprefix("mask_rcnn_R_").split("_FPN_")
    assert int(depth) == cfg.MODEL.RESNETS.DEPTH
    parts = ["RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"]
    assert {cfg.MODEL[part].NORM for part in parts} == {norm}
    if path.parent.name == "paper":
        assert PaperRPNHead.from_config(cfg, [ShapeSpec(channels=256)] * 5)["norm"] == norm


def test_there_are_eight_configs_of_each_layout():
    names = [sorted(p.name for p in CONFIGS.glob(f"{d}/*.yaml")) for d in ("paper", "stock")]
    assert len(names[0]) == 8
    assert names[0] == names[1]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("quick/mask*.yaml")), ids=lambda p: p.stem)
def test_quick_configs_build(path):
    cfg = from_file(path)
    norm = path.stem.split("_")[5]
    kinds = {type(m).__name__ for m in build_on_meta(cfg).modules() if isinstance(m, NormAct)}
    assert kinds == ({norm} if norm.startswith("EvoNorm") else set())
    assert cfg.SOLVER.MAX_ITER <= 800


@pytest.mark.parametrize("norm", ["BN", "GN", "EvoNormB0", "EvoNormS0", "LN-ReLU"])
def test_it_trains_and_detects(small_cfg, train_batch, norm):
    torch.manual_seed(0)
    model = build_model(small_cfg(norm, *PAPER))
    with EventStorage():
        # 128 px leave P6 four elements; group normalization refuses a single one.
        losses = model(train_batch(images=2, size=128))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    # The outputs for the background are there to be counted; nothing trains them.
    predictor = model.roi_heads.box_predictor
    assert predictor.bbox_pred.weight.shape[0] == 4 * 5
    assert predictor.bbox_pred.weight.grad[-4:].abs().max() == 0
    assert model.roi_heads.mask_head.net[-1].out_channels == 5
    model.eval()
    with torch.no_grad():
        found = model([{"image": train_batch(size=128)[0]["image"], "height": 64, "width": 64}])
    assert found[0]["instances"].pred_masks.shape[1:] == (64, 64)


def test_places_of_the_norms(small_cfg):
    model = build_model(small_cfg("EvoNormS0", *PAPER))
    fpn, rpn = model.backbone, model.proposal_generator.rpn_head
    assert [m.apply_act for m in fpn.norms] == [False] * 5
    assert [m.apply_act for m in rpn.norm_acts] == [True] * 5
    heads = [m for m in model.roi_heads.modules() if isinstance(m, NormAct)]
    # two convolutions and a fully connected layer; two convolutions and the deconvolution
    assert [m.apply_act for m in heads] == [True] * 6
    assert not any(isinstance(m, nn.ReLU) for m in model.roi_heads.modules())
    assert all(
        m.bias is not None
        for part in (fpn.lateral, fpn.output, fpn.coarsest, rpn, model.roi_heads)
        for m in part.modules()
        if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
    )


def test_pyramid_levels(small_cfg):
    model = build_model(small_cfg("EvoNormS0", *PAPER))
    features = model.backbone(torch.randn(1, 3, 64, 96))
    shapes = model.backbone.output_shape()
    for name, stride in zip(("p2", "p3", "p4", "p5"), (4, 8, 16, 32), strict=True):
        assert shapes[name].stride == stride
        assert features[name].shape == (1, 32, 64 // stride, 96 // stride)
    assert shapes["p6"].stride == 64
    assert features["p6"].shape == (1, 32, 1, 2)
