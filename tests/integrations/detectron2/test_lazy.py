"""LazyConfigs in the command train: training, evaluation, resuming, overrides, every bad input."""

import builtins
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import SimpleTrainer, hooks
from detectron2.model_zoo import get_config_file
from detectron2.utils.env import seed_all_rng

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.integrations.detectron2 import train
from evonorm_plugins.integrations.detectron2.config import load_config
from evonorm_plugins.integrations.detectron2.data import register_coco
from evonorm_plugins.integrations.detectron2.lazy_config import load_lazy_config
from evonorm_plugins.integrations.detectron2.lazy_run import setup_lazy
from tests.conftest import load_tool
from tests.integrations.detectron2 import small_sets

SMALL = Path(__file__).parent / "small_config.py"
ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make = load_tool("make_shapes_dataset").make_shapes_dataset
    return make(folder, train=8, val=3, size=64)


def forget_sets():
    for name in ("evonorm_train", "evonorm_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def arguments(config, shapes, *options):
    flags = [x for k, v in shapes.items() for x in ("--" + k.replace("_", "-"), str(v))]
    batch = "dataloader.train.total_batch_size=2"
    return ["--trust-config", "--config-file", str(config), *flags, batch, *map(str, options)]


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Output folder of a run of three iterations, which then went on to five."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = (f"train.output_dir={out}", "train.seed=1")
    assert train.main(arguments(SMALL, shapes, *options, "train.max_iter=3")) == 0
    forget_sets()
    more = ("train.max_iter=5", "model.roi_heads.box_head.conv_norm=EvoNormS0(groups=32)")
    assert train.main(["--resume", *arguments(SMALL, shapes, *options, *more)]) == 0
    forget_sets()
    return out


def test_a_run_leaves_what_one_of_a_yaml_config_does(trained):
    record = json.loads((trained / "results.json").read_text())
    assert set(record["ap_percent"]) == {"bbox", "segm"}
    assert record["norms"] == ["EvoNormS0 without activation", "EvoNormS0(groups=32)"]
    assert record["cost"]["seconds_per_iteration"] > 0
    assert record["dataset"] == ["evonorm_val"]
    assert (trained / "predictions.png").read_bytes()[:4] == b"\x89PNG"
    assert "max_iter: 5" in (trained / "config.yaml").read_text()
    steps = (trained / "steps.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in steps] == ["iteration", *map(str, range(5))]


def test_it_goes_on_where_it_was(trained):
    log = (trained / "log.txt").read_text()
    assert "Starting at iteration 0 with fresh weights." in log
    assert "model_final.pth at iteration 3." in log
    final = torch.load(trained / "model_final.pth", weights_only=True)
    assert final["iteration"] == 4
    assert (trained / "model_0000003.pth").is_file()


def test_the_rate_of_sgd_is_scaled_to_the_batch(trained):
    said = "optimizer.lr 0.02 is for 16 images a step; with 2 it is scaled to 0.0025."
    assert said in (trained / "log.txt").read_text()
    assert "lr: 0.0025" in (trained / "config.yaml").read_text()


def test_eval_only_gives_the_result_of_training_again(shapes, trained, tmp_path):
    weights = f"train.init_checkpoint={trained / 'model_final.pth'}"
    options = (f"train.output_dir={tmp_path}", weights)
    assert train.main(["--eval-only", *arguments(SMALL, shapes, *options)]) == 0
    records = [json.loads((d / "results.json").read_text()) for d in (trained, tmp_path)]
    assert records[0]["ap_percent"] == records[1]["ap_percent"]
    assert records[1]["cost"] is None


def test_it_trains_as_detectron2_does(shapes, trained):
    """As its ``lazyconfig_train_net.py``, from the same seed."""
    options = [
        *("train.max_iter=3", "dataloader.train.total_batch_size=2", "optimizer.lr=0.0025"),
        "dataloader.train.dataset.names=evonorm_train",
    ]
    register_coco("evonorm_train", shapes["train_json"], shapes["train_images"])
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(SMALL)), options)
    seed_all_rng(1)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))])
    trainer.train(0, 3)
    with open(trained / "steps.csv") as file:
        losses = [float(line.split(",")[1]) for line in file.readlines()[1:4]]
    assert [v for v, _ in trainer.storage.history("total_loss").values()] == pytest.approx(
        losses, rel=1e-4
    )


def test_semantic_and_objects(tmp_path):
    """A panoptic model: label images and objects, two evaluators, both in results and picture."""
    name = small_sets.register_panoptic(tmp_path / "set")
    options = [
        *("train.init_checkpoint=''", "train.max_iter=1", f"train.output_dir={tmp_path / 'out'}"),
        *(f"dataloader.{split}.dataset.names={name}" for split in ("train", "test")),
        *(f"dataloader.{split}.num_workers=0" for split in ("train", "test")),
        *("dataloader.train.total_batch_size=2", "optimizer.lr=0.001"),
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64,64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        *("model.roi_heads.num_classes=1", "model.sem_seg_head.num_classes=2"),
        *("model.backbone.bottom_up.freeze_at=0", "model.sem_seg_head.norm=EvoNormS0"),
        *(f"model.backbone.bottom_up.{part}.norm=EvoNormS0" for part in ("stem", "stages")),
        *("model.roi_heads.box_predictor.test_score_thresh=0.0", "train.seed=1"),
    ]
    config = tmp_path / "config.py"
    config.write_text(
        "from detectron2 import model_zoo\n"
        "_zoo = model_zoo.get_config('COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py')\n"
        "model, train, dataloader = _zoo.model, _zoo.train, _zoo.dataloader\n"
        "optimizer, lr_multiplier = _zoo.optimizer, _zoo.lr_multiplier\n"
        "del dataloader.evaluator[2]  # needs panopticapi\n"
    )
    assert train.main(["--trust-config", "--config-file", str(config), *options]) == 0
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert set(record["ap_percent"]) == {"bbox", "segm"}
    assert set(record["percent"]) == {"sem_seg"}
    assert (tmp_path / "out/predictions.png").read_bytes()[:4] == b"\x89PNG"


def test_a_loss_that_is_not_finite(shapes, tmp_path, capsys):
    options = (f"train.output_dir={tmp_path}", "optimizer.lr=1e30", "train.max_iter=9")
    warm = "lr_multiplier.warmup_factor=1.0"
    assert train.main(arguments(SMALL, shapes, *options, warm)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the loss is not finite at iteration 1: ")
    assert "A lower optimizer.lr" in said
    assert not list(tmp_path.glob("*.pth"))


def test_an_image_that_cannot_be_read_is_named(shapes, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    content = json.loads(Path(shapes["train_json"]).read_text())
    for image in content["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes(b"no image")
    shapes = {**shapes, "train_images": tmp_path / "images"}
    assert train.main(arguments(SMALL, shapes, f"train.output_dir={tmp_path / 'out'}")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {tmp_path / 'images'}" in said
    assert "cannot be read as an image" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["train.max_itr=5"], "'train.max_itr' is not in the config; +train.max_itr=5 adds it"),
        (["train.max_iter", "5"], "options of a LazyConfig are key=value; got 'train.max_iter'"),
        (["train.max_iter=many"], "train.max_iter 'many' must be an integer of at least 1"),
        (["train.max_iter=[1"], "option train.max_iter=[1: "),
        (["train.log_period=0"], "train.log_period 0 must be an integer of at least 1"),
        (["train.device=cuda"], "train.device cuda: "),
        (["train.device=banana"], "train.device banana: "),
        (["train.init_checkpoint=gone.pth"], "there is no checkpoint gone.pth"),
        (["train.output_dir=/dev/null"], "train.output_dir=/dev/null is a file"),
        (["model.backbone.norm=EvoNormS9"], "model.backbone.norm: unknown NORM 'EvoNormS9'"),
        (["model.backbone.norm=EvoNormS0(groups=0)"], "groups=0 must be an integer of at least 1"),
        (["model.backbone.norms=BN"], "the model cannot be built from the config: "),
        (["optimizer.momentun=1"], "the optimizer cannot be built from the config: "),
        (["lr_multiplier.scheduler=7"], "lr_multiplier cannot be built from the config: "),
        (["dataloader.train.mapper.is_trian=1"], "dataloader.train.mapper cannot be built: "),
        (["dataloader.evaluator.task=1"], "dataloader.evaluator cannot be built: "),
        (["model.roi_heads.num_classes=2"], "categories, model.roi_heads.num_classes is 2; set it"),
        (["dataloader.train=null"], "--train-json: dataloader.train.dataset of the config has no"),
        (["--num-gpus=3"], "2 images a step cannot be split evenly among 3 processes"),
        (["--eval-only"], "--eval-only needs train.init_checkpoint, or --resume"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_leaves_nothing(
    shapes, tmp_path, capsys, options, said, monkeypatch
):
    if "train.device=cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    flags = [o for o in options if o.startswith("--")]
    options = [o for o in options if o not in flags]
    assert train.main([*flags, *arguments(SMALL, shapes, "train.output_dir=out", *options)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert said in message
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_written_over(shapes, trained, capsys):
    assert train.main(arguments(SMALL, shapes, f"train.output_dir={trained}")) == 2
    assert "holds a run already: go on with --resume" in capsys.readouterr().err


def test_a_set_that_is_not_there_is_named(capsys):
    assert train.main(["--config-file", ZOO]) == 2
    said = capsys.readouterr().err
    assert "the dataset coco_2017_train has no annotations" in said
    assert train.main(["--config-file", ZOO, "dataloader.train.dataset.names=gone"]) == 2
    said = capsys.readouterr().err
    assert "dataloader.train.dataset.names: no dataset is registered as 'gone'" in said


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py", "keypoint_head"),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py", "sem_seg_head"),
    ],
)
def test_models_that_need_more_than_boxes_and_masks(config, part, shapes, capsys):
    assert train.main(arguments(config, shapes)) == 2
    said = capsys.readouterr().err
    assert f"--train-json gives boxes and masks, and the model has a {part}" in said


def test_a_program_of_others_does_not_run(tmp_path, capsys):
    config, witness = tmp_path / "config.py", tmp_path / "ran"
    config.write_text(f"open({str(witness)!r}, 'w')\nmodel, train = dict(), dict()\n")
    assert train.main(["--config-file", str(config)]) == 2
    said = capsys.readouterr().err
    assert f"{config} is a program, which would run with all your rights" in said
    assert "--trust-config" in said
    assert not witness.exists()
    load_lazy_config(config, trust=True)
    assert witness.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = 1 +", "is not Python: line 1: "),
        ("import gone_module", "line 1: ModuleNotFoundError: No module named 'gone_module'"),
        ("x = 1\ny = x.z", "line 2: AttributeError: 'int' object has no attribute 'z'"),
        ("from .gone import x", "line 1: ImportError: Cannot import name gone"),
        ("train = dict()", "is no config of a run: it defines no 'model'"),
        ("model = dict()", "is no config of a run: it defines no 'train'"),
    ],
)
def test_what_is_no_config(tmp_path, text, said):
    (tmp_path / "config.py").write_text(text)
    before = builtins.__import__
    with pytest.raises(ConfigError) as caught:
        load_lazy_config(tmp_path / "config.py", trust=True)
    assert said in str(caught.value)
    assert builtins.__import__ is before


def test_parts_that_lack(tmp_path, shapes, capsys):
    config = tmp_path / "config.py"
    config.write_text(SMALL.read_text().replace("optimizer, lr_multiplier =", "_, lr_multiplier ="))
    assert train.main(arguments(config, shapes, f"train.output_dir={tmp_path / 'out'}")) == 2
    assert "the config has no 'optimizer.params'" in capsys.readouterr().err


def test_overrides_are_those_of_detectron2():
    overrides = [
        "train.max_iter=7",
        "train.init_checkpoint=''",
        "model.roi_heads.box_head.conv_norm=EvoNormB0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[1,2]",
        "+train.mine={a: 1, b: [x, 2.5]}",
    ]
    options = ["train.device=cpu", "model.backbone.norm='EvoNormS0(groups=8)'"]
    expected = LazyConfig.apply_overrides(
        LazyConfig.load(get_config_file(ZOO)), [*overrides, *options]
    )
    options[1] = "model.backbone.norm=EvoNormS0(groups=8)"  # which Hydra would take for a call
    cfg, notes = load_lazy_config(get_config_file(ZOO), [*overrides, *options])
    assert not notes
    for part in ("model", "dataloader", "optimizer", "lr_multiplier", "train"):
        assert cfg[part] == expected[part], part


def test_freezing_what_was_never_trained_is_said(shapes, tmp_path):
    options = (
        "model.backbone.bottom_up.freeze_at=2",
        "model.backbone.bottom_up.stem.norm=FrozenBN",
    )
    args = arguments(SMALL, shapes, f"train.output_dir={tmp_path}", *options)
    _, notes = setup_lazy(train.parse_args(args))
    assert any("model.backbone.bottom_up.stem.norm is FrozenBN" in note for note in notes)
    assert any("model.backbone.bottom_up.freeze_at is 2" in note for note in notes)


def test_configs_of_the_model_zoo_are_found_by_name():
    cfg, _ = load_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert cfg.MODEL.MASK_ON
    with pytest.raises(ConfigError, match="is a LazyConfig, which"):
        load_config(ZOO)


def test_logging_is_on_after_the_checks(shapes, tmp_path):
    setup_lazy(train.parse_args(arguments(SMALL, shapes, f"train.output_dir={tmp_path}")))
    assert logging.root.manager.disable == logging.NOTSET
