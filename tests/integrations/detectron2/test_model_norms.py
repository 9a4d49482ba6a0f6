"""The census of norms per part, logged when a model is built."""

import logging

import torch
from detectron2.modeling import build_model

from evonorm_plugins.integrations.detectron2 import census, norms_of
from evonorm_plugins.integrations.detectron2.trainer import Trainer


def test_census_of_a_mixed_model(small_cfg):
    cfg = small_cfg("EvoNormS0", "MODEL.ROI_MASK_HEAD.NORM", "GN", "MODEL.FPN.NORM", "BN")
    assert census(build_model(cfg)).splitlines() == [
        "backbone             8 BN",
        "backbone.bottom_up   11 EvoNormS0 without activation, 9 EvoNormS0(groups=32)",
        "roi_heads.box_head   2 EvoNormS0(groups=32)",
        "roi_heads.mask_head  2 GN(groups=32)",
    ]


def test_a_norm_inside_a_norm_act_counts_once(small_cfg):
    model = build_model(small_cfg("BN-ReLU"))
    assert set(norms_of(model).values()) == {"BNReLU", "BNReLU without activation"}


def test_the_trainer_logs_it_when_it_builds_a_model(small_cfg, caplog):
    with caplog.at_level(logging.INFO, "detectron2.evonorm_plugins"), torch.device("meta"):
        Trainer.build_model(small_cfg("EvoNormB0", "MODEL.DEVICE", "meta"))
    assert "roi_heads.box_head   2 EvoNormB0" in caplog.text
