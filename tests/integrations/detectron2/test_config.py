"""Configs: read without running what they hold; what is wrong with them is named."""

import logging

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from evonorm_plugins.errors import ConfigError, DataError
from evonorm_plugins.integrations.detectron2.config import (
    check_config,
    load_config,
    scale_learning_rate,
)
from evonorm_plugins.integrations.detectron2.keys import add_evonorm_config
from evonorm_plugins.integrations.detectron2.paper import PaperRPNHead
from tests.integrations.detectron2.conftest import CONFIGS

QUICK = CONFIGS / "quick/mask_rcnn_R_18_FPN_EvoNormS0_shapes.yaml"


@pytest.mark.parametrize(
    ("batch", "given", "rate"), [(16, [], 0.025), (64, [], 0.1), (16, ["SOLVER.BASE_LR"], 0.1)]
)
def test_learning_rate_follows_the_batch(small_cfg, batch, given, rate):
    cfg = small_cfg("EvoNormS0", "SOLVER.IMS_PER_BATCH", batch)
    note = scale_learning_rate(cfg, 64, given)
    assert pytest.approx(rate) == cfg.SOLVER.BASE_LR
    assert (note is None) == (rate == 0.1)


def test_a_batch_of_nothing(small_cfg):
    with pytest.raises(DataError, match="IMS_PER_BATCH 0 must be at least 1"):
        scale_learning_rate(small_cfg("EvoNormS0", "SOLVER.IMS_PER_BATCH", 0), 64)


def attack(path, witness):
    path.write_text(f"MODEL:\n  WEIGHTS: !!python/object/apply:os.mkdir [{witness}]\n")
    return path


def based_on(base, path):
    path.write_text(f"_BASE_: {base}\n")
    return path


@pytest.mark.parametrize("through_base", [False, True])
def test_objects_in_a_config_are_not_built(tmp_path, through_base):
    path, witness = attack(tmp_path / "evil.yaml", tmp_path / "built"), tmp_path / "built"
    path = based_on("evil.yaml", tmp_path / "plain.yaml") if through_base else path
    with pytest.raises(ConfigError, match=r"evil\.yaml cannot be read: .*os\.mkdir.*--trust-con"):
        load_config(path)
    assert not witness.exists()
    load_config(path, trust=True)
    assert witness.exists()


def test_the_files_of_the_model_zoo_are_trusted(tmp_path):
    # Its sizes of anchors are an expression.
    zoo = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg, _ = load_config(based_on(zoo, tmp_path / "mine.yaml"))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no config"),
        (b"- 1\n- 2\n", "is no config"),
        (b"text", "is no config"),
        (b"_BASE_: 3\n", "is no config"),
        (b"_BASE_: [3]\n", "is no config"),
        (b"_BASE_: gone.yaml\n", "gone.yaml: No such file"),
        (b"_BASE_: config.yaml\n", "leads back to the file itself"),
        (b"A: [1\n", "is not YAML"),
        (b"[" * 10_000, "is nested too deeply"),
        (b"\xff\xfe\xfa", "is not UTF-8|is not YAML"),
        (b"MODEL: 3\n", "config.yaml: a value is not of the kind that is needed"),
        (b"MODEL:\n  NOTHING: 3\n", "Non-existent config key: MODEL.NOTHING"),
        (b"SOLVER:\n  MAX_ITER: many\n", "SOLVER.MAX_ITER"),
        (b"VERSION: many\n", "config.yaml: a value is not of the kind that is needed"),
    ],
)
def test_files_that_are_no_configs(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_configs_have_names():
    cfg, _ = load_config("mask_rcnn_R_18_FPN_EvoNormS0_shapes")
    assert cfg == load_config(QUICK)[0]
    with pytest.raises(ConfigError, match="'nothing' is no file and no detectron2 config"):
        load_config("nothing")


def test_configs_of_version_1(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({"VERSION": 1, "MODEL": {"WEIGHT": "old.pkl"}}))
    cfg, _ = load_config(path)
    assert (cfg.VERSION, cfg.MODEL.WEIGHTS) == (2, "old.pkl")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.DEVICE", "banana", "MODEL.DEVICE banana: .* is no device"),
        ("MODEL.DEVICE", "meta", "MODEL.DEVICE meta: .* is no device"),
        ("MODEL.META_ARCHITECTURE", "Nothing", "'Nothing' is not one of .*GeneralizedRCNN"),
        ("MODEL.BACKBONE.NAME", "nothing", "the model cannot be built from the config: .*nothing"),
        ("MODEL.RESNETS.DEPTH", "33", "MODEL.RESNETS.DEPTH 33 is not one of 18, 34, 50"),
        ("MODEL.FPN.OUT_CHANNELS", "-4", "the model cannot be built from the config"),
        ("SOLVER.MAX_ITER", "0", "SOLVER.MAX_ITER 0 must be at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD 0 must be at least 1"),
        ("SOLVER.BASE_LR", "float('nan')", "SOLVER.BASE_LR"),
        ("SOLVER.BASE_LR", "-1.0", "SOLVER.BASE_LR -1.0 must be at least 0"),
        (
            "SOLVER.MAX_ITER",
            "9" * 20,
            "SOLVER.MAX_ITER 9+ must be below 2147483648",
        ),
        ("TEST.EXPECTED_RESULTS", "[['bbox']]", r"has \['bbox'\]; each is \[task, metric, value"),
        ("DATALOADER.SAMPLER_TRAIN", "X", "'X' is not one of TrainingSampler"),
        ("INPUT.MIN_SIZE_TEST", "-5", "images cannot be prepared as INPUT says"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "images cannot be prepared as INPUT says"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "X", "images cannot be prepared as INPUT says: X"),
        ("INPUT.RANDOM_FLIP", "sideways", "images cannot be prepared as INPUT says"),
        ("INPUT.FORMAT", "XYZ", "images cannot be prepared as INPUT says"),
        ("SOLVER.MOMENTUM", "-1.0", "the optimizer cannot be built from SOLVER: .*momentum"),
        ("SOLVER.LR_SCHEDULER_NAME", "Nothing", "'Nothing' is not one of WarmupMultiStepLR"),
        ("SOLVER.WARMUP_METHOD", "burn", "'burn' is not one of linear, constant"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all", "'all' is not one of value, norm, full_model"),
        ("DATALOADER.NUM_WORKERS", "-1", "DATALOADER.NUM_WORKERS -1 must be at least 0"),
        ("SEED", "4294967296", "SEED 4294967296 must be below 4294967296"),
        ("INPUT.MASK_FORMAT", "png", "'png' is not one of polygon, bitmask"),
        ("SOLVER.STEPS", "-" * 100_000 + "1", "options: |SOLVER.STEPS"),
    ],
    ids=lambda value: value[:30],
)
def test_values_that_make_no_sense(key, value, message):
    level = logging.root.manager.disable
    with pytest.raises(ConfigError, match=message):
        check_config(load_config(QUICK, ("MODEL.DEVICE", "cpu", key, value))[0])
    assert logging.root.manager.disable == level


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_our_configs_are_right(path):
    cfg, _ = load_config(path, ("MODEL.DEVICE", "cpu"))
    check_config(cfg)


PAPER = CONFIGS / "paper/mask_rcnn_R_50_FPN_EvoNormS0.yaml"


@pytest.mark.parametrize(
    ("base", "norm", "kept", "note"),
    [
        (QUICK, '""', False, None),
        (QUICK, "BN", False, "MODEL.RPN.NORM 'BN' is left out: StandardRPNHead has no norm."),
        (PAPER, "GN", True, None),
        (PAPER, '""', True, None),
        (PAPER, "null", False, None),
    ],
)
def test_configs_of_the_past_have_a_norm_of_the_rpn(tmp_path, base, norm, kept, note):
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {base}\nMODEL:\n  RPN:\n    NORM: {norm}\n")
    cfg, notes = load_config(path, ("MODEL.DEVICE", "cpu"))
    value = yaml.safe_load(norm)
    assert cfg.MODEL.RPN.get("NORM", "none") == (value if kept else "none")
    assert notes == ([note] if note else [])
    check_config(cfg)
    # In somebody's own script.
    cfg = get_cfg()
    add_evonorm_config(cfg)
    add_evonorm_config(cfg)
    cfg.merge_from_file(str(path))
    assert value == cfg.MODEL.RPN.NORM
    if base == PAPER:
        options = PaperRPNHead.from_config(cfg, [ShapeSpec(channels=256)] * 5)
        assert options["norm"] == (value if kept else "EvoNormS0")


def test_what_is_saved_of_a_stock_model_has_no_key_of_this_package():
    cfg, _ = load_config(QUICK, ("MODEL.DEVICE", "cpu"))
    assert list(cfg.MODEL.RPN) == list(get_cfg().MODEL.RPN)
    cfg, notes = load_config(QUICK, ("MODEL.DEVICE", "cpu", "MODEL.RPN.NORM", "GN"))
    assert notes == ["MODEL.RPN.NORM 'GN' is left out: StandardRPNHead has no norm."]


@pytest.mark.parametrize("depth", [18, 50])
def test_the_norms_of_the_study_on_nuclei_share_their_recipe(depth):
    parts = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    recipes = set()
    for norm in ("BN", "GN", "EvoNormB0", "EvoNormS0"):
        cfg, _ = load_config(f"nuclei/mask_rcnn_R_{depth}_FPN_{norm}")
        assert {cfg.MODEL[part].NORM for part in parts} == {norm}
        for part in parts:
            cfg.MODEL[part].NORM = ""
        assert depth == cfg.MODEL.RESNETS.DEPTH
        recipes.add(cfg.dump())
    assert len(recipes) == 1
