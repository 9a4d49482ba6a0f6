"""The command train from the outside: training, evaluation, resuming, and every bad input."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone

from evonorm_plugins.integrations.detectron2 import train
from evonorm_plugins.integrations.detectron2.run import setup
from tests.conftest import load_tool

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "detectron_configs/quick/mask_rcnn_R_18_FPN_EvoNormS0_shapes.yaml"
FAST = (
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64",
    "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64",
)  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make = load_tool("make_shapes_dataset").make_shapes_dataset
    return make(folder, train=12, val=4, size=64)


@pytest.fixture(autouse=True)
def unregister():
    yield
    for name in ("evonorm_train", "evonorm_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def arguments(shapes, *options, **changes):
    paths = {**{k: str(v) for k, v in shapes.items()}, **changes}
    flags = [x for k, v in paths.items() for x in ("--" + k.replace("_", "-"), str(v))]
    return ["--config-file", str(CONFIG), *flags, *FAST, *map(str, options)]


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Output folder of a run of three iterations."""
    out = tmp_path_factory.mktemp("run") / "out"
    options = ("OUTPUT_DIR", out, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2)
    assert train.main(arguments(shapes, *options)) == 0
    for name in ("evonorm_train", "evonorm_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    return out


def test_a_run_leaves_table_picture_and_record(trained):
    record = json.loads((trained / "results.json").read_text())
    assert set(record["ap_percent"]) == {"bbox", "segm"}
    assert record["norms"] == ["EvoNormS0 without activation", "EvoNormS0(groups=32)"]
    assert record["cost"]["seconds_per_iteration"] > 0
    assert (trained / "predictions.png").read_bytes()[:4] == b"\x89PNG"
    assert "AP50" in (trained / "log.txt").read_text()
    assert torch.load(trained / "model_final.pth", weights_only=True)["iteration"] == 2


def test_learning_rate_is_scaled_to_the_batch(trained):
    log = (trained / "log.txt").read_text()
    assert "SOLVER.BASE_LR 0.04 is for 4 images a step; with 2 it is scaled to 0.02" in log
    assert "BASE_LR: 0.02" in (trained / "config.yaml").read_text()


def test_eval_only_gives_the_result_of_training_again(shapes, trained, tmp_path):
    options = ("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", trained / "model_final.pth")
    assert train.main(["--eval-only", *arguments(shapes, *options)]) == 0
    records = [json.loads((d / "results.json").read_text()) for d in (trained, tmp_path)]
    assert records[0]["ap_percent"] == records[1]["ap_percent"]
    assert records[1]["cost"] is None


def test_two_processes_evaluate_as_one_does(shapes, trained, tmp_path):
    options = ("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", trained / "model_final.pth")
    assert train.main(["--eval-only", "--num-gpus", "2", *arguments(shapes, *options)]) == 0
    records = [json.loads((d / "results.json").read_text()) for d in (trained, tmp_path)]
    assert records[0]["ap_percent"] == records[1]["ap_percent"]


def test_default_predictor_from_the_saved_config(trained):
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    cfg = get_cfg()
    cfg.merge_from_file(str(trained / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(trained / "model_final.pth")
    cfg.DATASETS.TEST = ()
    predictor = DefaultPredictor(cfg)
    saved = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    key = "backbone.bottom_up.stem.conv1.norm.v"
    assert torch.equal(predictor.model.state_dict()[key], saved[key])
    image = torch.randint(0, 255, (50, 70, 3), dtype=torch.uint8).numpy()
    assert predictor(image)["instances"].image_size == (50, 70)


def test_resume_after_kill(fork, shapes, tmp_path):
    out = tmp_path / "out"
    options = ("OUTPUT_DIR", out, "SOLVER.CHECKPOINT_PERIOD", 2)
    process = fork(train.main, arguments(shapes, *options, "SOLVER.MAX_ITER", 10_000))
    deadline = time.monotonic() + 120
    while not (out / "last_checkpoint").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    done = torch.load(
        out / (out / "last_checkpoint").read_text().strip(), weights_only=True
    )["iteration"]  # fmt: skip

    # Without --resume nothing is overwritten.
    last = done + 4
    assert train.main(arguments(shapes, *options, "SOLVER.MAX_ITER", last)) == 2
    assert train.main(["--resume", *arguments(shapes, *options, "SOLVER.MAX_ITER", last)]) == 0
    log = (out / "log.txt").read_text()
    assert f"at iteration {done + 1}." in log
    final = torch.load(out / "model_final.pth", weights_only=True)
    assert final["iteration"] == last - 1
    steps = (out / "steps.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in steps[-4:]] == list(range(last - 4, last))


def killed_while_writing(arguments):
    """train.main, killed when half of its last checkpoint is written."""
    save = torch.save

    def half(content, file):
        if "model_final" in str(file.name):
            file.write(b"PK" * 1000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(content, file)

    torch.save = half
    return train.main(arguments)


def test_a_kill_while_a_finished_run_is_extended_loses_nothing(fork, shapes, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    options = ("OUTPUT_DIR", out, "SOLVER.CHECKPOINT_PERIOD", 100, "SOLVER.MAX_ITER")
    process = fork(killed_while_writing, ["--resume", *arguments(shapes, *options, 4)])
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    # Those of before are there, and the run goes on.
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 2
    assert train.main(["--resume", *arguments(shapes, *options, 5)]) == 0
    assert "at iteration 3." in (out / "log.txt").read_text()
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 4


def test_an_empty_last_checkpoint_is_named(shapes, trained, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    (out / "last_checkpoint").write_text("")
    command = ["--resume", *arguments(shapes, "OUTPUT_DIR", out, "SOLVER.MAX_ITER", 4)]
    for more in ([], ["--eval-only"]):
        assert train.main([*more, *command]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"error: {out}/last_checkpoint is empty")
        assert message.endswith(f"echo model_final.pth > {out}/last_checkpoint")


def test_a_backbone_of_another_norm(shapes, tmp_path, capsys):
    """Refused, with the option that loads it without its norms."""
    backbone = build_resnet_backbone(
        setup(train.parse_args(arguments(shapes, "MODEL.RESNETS.NORM", "BN")))[0],
        ShapeSpec(channels=3),
    )
    path, out = tmp_path / "R-18.pkl", tmp_path / "out"
    content = {"model": {k: v.numpy() for k, v in backbone.state_dict().items()}}
    content |= {"__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    options = ("OUTPUT_DIR", out, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()")
    options += ("SOLVER.BASE_LR", "0.0", "MODEL.WEIGHTS", path)
    no_test = {**shapes, "val_json": "", "val_images": ""}
    assert train.main(arguments(no_test, *options)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: the checkpoint was trained with another norm")
    assert "--drop-norms" in message
    assert train.main(["--drop-norms", *arguments(no_test, *options)]) == 0
    assert "20 of the checkpoint's 20 norms are dropped" in (out / "log.txt").read_text()
    saved = torch.load(out / "model_final.pth", weights_only=True)["model"]
    key = "backbone.bottom_up.res3.0.conv1."
    assert torch.equal(saved[key + "weight"], backbone.res3[0].conv1.weight)
    assert torch.equal(saved[key + "norm.weight"], torch.ones(128))


@pytest.mark.parametrize("options", [(), ("--eval-only", "MODEL.WEIGHTS", "w.pth")])
def test_dropping_norms_of_nothing(shapes, tmp_path, capsys, options):
    flags, options = options[:1], options[1:]
    out = tmp_path / "out"
    assert (
        train.main([*flags, "--drop-norms", *arguments(shapes, "OUTPUT_DIR", out, *options)]) == 2
    )
    assert "--drop-norms is for training that starts from MODEL.WEIGHTS" in capsys.readouterr().err


def edited(shapes, tmp_path, split, change):
    """The paths of the data set with ``change`` applied to one of its annotation files."""
    content = json.loads(Path(shapes[f"{split}_json"]).read_text())
    change(content)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    return {f"{split}_json": path}


def no_images(content):
    content["images"].clear()


def unlisted_image(content):
    content["annotations"][0]["image_id"] = 4711


def image_without_file(content):
    content["images"][0]["file_name"] = "gone.png"


def category_without_instances(content):
    content["categories"].append({"id": 99, "name": "hexagon"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_images, "images"),
        (unlisted_image, "4711"),
        (image_without_file, "gone.png"),
        (category_without_instances, "hexagon"),
    ],
)
def test_bad_annotations(shapes, tmp_path, capsys, change, said):
    changes = edited(shapes, tmp_path, "train", change)
    out = tmp_path / "out"
    assert train.main(arguments(shapes, "OUTPUT_DIR", out, **changes)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert said in message
    assert str(changes["train_json"]) in message
    assert not out.exists()


def test_empty_categories_can_be_allowed(shapes, tmp_path, capsys):
    changes = edited(shapes, tmp_path, "train", category_without_instances)
    command = ["--allow-empty-categories", *arguments(shapes, **changes)]
    assert train.main(command) == 2
    assert "5 categories, MODEL.ROI_HEADS.NUM_CLASSES is 4; set it to 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("MODEL.FPN.NORM", "EvoNormS9"), "MODEL.FPN.NORM: unknown NORM 'EvoNormS9'"),
        (("MODEL.FPN.NORM", "EvoNormS0(groups=0)"), "groups=0 must be an integer of at least 1"),
        (("MODEL.FPN.NORM", "EvoNormB0(groups=8)"), "unexpected keyword argument 'groups'"),
        (("MODEL.WEIGHTS", "gone.pth"), "there is no checkpoint gone.pth"),
        (("MODEL.DEVICE", "cuda"), "torch sees no CUDA device"),
        (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH 0"),
        (("MODEL.NO_SUCH_KEY", "1"), "Non-existent key: MODEL.NO_SUCH_KEY"),
        (("SOLVER.MAX_ITER", "many"), "SOLVER.MAX_ITER"),
    ],
)
def test_bad_options(shapes, tmp_path, capsys, options, said):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    out = tmp_path / "out"
    assert train.main(arguments(shapes, "OUTPUT_DIR", out, *options)) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("MODEL.DEVICE", "banana"), "MODEL.DEVICE banana: "),
        (("SOLVER.MAX_ITER", "0"), "SOLVER.MAX_ITER 0 must be at least 1"),
        (("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS -1 must be at least 0"),
        (("SOLVER.LR_SCHEDULER_NAME", "X"), "SOLVER.LR_SCHEDULER_NAME 'X' is not one of"),
        (("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "X"), "CLIP_TYPE 'X' is not one of value, norm, full"),
        (("MODEL.META_ARCHITECTURE", "X"), "MODEL.META_ARCHITECTURE 'X' is not one of"),
        (("MODEL.RESNETS.DEPTH", "33"), "MODEL.RESNETS.DEPTH 33 is not one of 18, 34, 50, 101"),
        (("MODEL.ROI_HEADS.NAME", "X"), "the model cannot be built from the config: "),
        (("MODEL.WEIGHTS", "http://127.0.0.1:9/w.pkl"), "cannot fetch the checkpoint http://127."),
        (("MODEL.WEIGHTS", "gone://w.pkl"), "gone://w.pkl"),
        (("OUTPUT_DIR", "/dev/null"), "OUTPUT_DIR=/dev/null is a file"),
        (("OUTPUT_DIR", "/dev/null/out"), "/dev/null is a file"),
        (("OUTPUT_DIR", "/proc/out"), "OUTPUT_DIR=/proc/out cannot be written"),
        (("OUTPUT_DIR", ""), "OUTPUT_DIR=: the name is empty"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_leaves_nothing(
    shapes, tmp_path, capsys, options, said, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments(shapes, "OUTPUT_DIR", "out", *options)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert said in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags", [("--num-gpus", "99"), ("--num-gpus", "-1"), ("--machine-rank", "1")]
)
def test_processes_that_cannot_be(shapes, tmp_path, capsys, flags):
    out = tmp_path / "out"
    assert train.main([*flags, *arguments(shapes, "OUTPUT_DIR", out)]) == 2
    assert capsys.readouterr().err.startswith("error: --num-gpus")
    assert not out.exists()


@pytest.mark.parametrize("through", ["weights.pkl", "weights.pth", "config", "base"])
def test_code_in_files_of_others_does_not_run(shapes, tmp_path, capsys, through):
    witness, out = tmp_path / "ran", tmp_path / "out"
    config, options = CONFIG, ("OUTPUT_DIR", out)
    if through.startswith("weights"):
        weights = tmp_path / through
        attack = type("Attack", (), {"__reduce__": lambda _: (os.mkdir, (str(witness),))})()
        if through.endswith("pkl"):
            weights.write_bytes(pickle.dumps({"model": {"weight": attack}}))
        else:
            torch.save({"model": {"weight": attack}}, weights)
        options += ("MODEL.WEIGHTS", weights)
    else:
        config = tmp_path / "evil.yaml"
        config.write_text(f"_BASE_: {CONFIG}\nA: !!python/object/apply:os.mkdir [{witness}]\n")
        if through == "base":
            config = tmp_path / "plain.yaml"
            config.write_text("_BASE_: evil.yaml\n")
    command = ["--config-file", str(config), *arguments(shapes, *options)[2:]]
    assert train.main(command) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "could run the code of whoever wrote it" in message
    assert f"--trust-{through[:7] if through[0] == 'w' else 'config'}" in message
    assert not witness.exists()
    assert not out.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_cut_off_is_named(shapes, tmp_path, capsys, workers):
    folder = tmp_path / "images"
    shutil.copytree(shapes["train_images"], folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:300])
    options = ("OUTPUT_DIR", tmp_path / "out", "DATALOADER.NUM_WORKERS", workers)
    assert train.main(arguments(shapes, *options, train_images=folder)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {folder}/")
    assert "cannot be read as an image: " in message


def test_images_of_another_size_are_named(shapes, tmp_path, capsys):
    def change(content):
        for image in content["images"]:
            image["width"] += 2

    changes = edited(shapes, tmp_path, "train", change)
    assert train.main(arguments(shapes, "OUTPUT_DIR", tmp_path / "out", **changes)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        rf"error: {shapes['train_images']}/\d+\.png: .*\(64, 64\), expect \(66, 64\)", message
    )


def started(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_run_shows_no_warnings_of_other_packages(shapes, tmp_path):
    options = ("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0)
    module = "evonorm_plugins.integrations.detectron2.train"
    run = started("-m", module, *arguments(shapes, *options))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "results.json").is_file()
    assert "arning" not in run.stderr
    assert "is_fx_tracing" not in run.stderr


def test_the_script_is_the_module(shapes, tmp_path):
    run = started("tools/train_net.py", *arguments(shapes, "SOLVER.MAX_ITER", 0))
    assert run.returncode == 2
    said = run.stderr.splitlines()
    assert said[-1] == "error: SOLVER.MAX_ITER 0 must be at least 1"
    assert "arning" not in run.stderr


def test_freezing_what_was_never_trained_is_said(shapes):
    options = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2)
    _, notes = setup(train.parse_args(arguments(shapes, *options)))
    assert any("MODEL.RESNETS.NORM is FrozenBN" in note for note in notes)
    assert any("MODEL.BACKBONE.FREEZE_AT is 2" in note for note in notes)
    _, notes = setup(train.parse_args(arguments(shapes)))
    assert not any("never trained" in note for note in notes)


def test_bad_paths(shapes, tmp_path, capsys):
    assert train.main(arguments(shapes, train_json=tmp_path / "gone.json")) == 2
    assert "gone.json" in capsys.readouterr().err
    assert train.main(["--config-file", "gone.yaml"]) == 2
    assert "'gone.yaml' is no file and no detectron2 config" in capsys.readouterr().err
    assert train.main(["--config-file", str(CONFIG), "DATASETS.TRAIN", "('gone',)"]) == 2
    assert "no dataset is registered as 'gone'" in capsys.readouterr().err
    assert train.main(["--config-file", str(CONFIG)]) == 2
    assert "the dataset coco_2017_train has no annotations" in capsys.readouterr().err
    assert train.main(["--eval-only", *arguments(shapes, "OUTPUT_DIR", tmp_path)]) == 2
    assert "--eval-only needs MODEL.WEIGHTS" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["--train-json", "a.json"], [], ["--config-file", str(CONFIG), "SOLVER.MAX_ITER"]],
)
def test_bad_command_lines(command, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(command)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_checkpoint_of_another_norm(shapes, trained, tmp_path, capsys):
    norms = [x for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
             for x in (f"MODEL.{part}.NORM", "EvoNormB0")]  # fmt: skip
    weights = ("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path)
    assert train.main(["--eval-only", *arguments(shapes, *norms, *weights)]) == 2
    said = capsys.readouterr().err
    assert "EvoNormS0(groups=32) in the checkpoint, EvoNormB0 in the model" in said


def test_half_written_checkpoint(shapes, trained, tmp_path, capsys):
    content = (trained / "model_final.pth").read_bytes()
    weights = tmp_path / "half.pth"
    weights.write_bytes(content[: len(content) // 2])
    options = ("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path)
    assert train.main(arguments(shapes, *options)) == 2
    assert f"cannot read checkpoint {weights}" in capsys.readouterr().err
    assert not list(tmp_path.glob("model*"))


def test_expected_results_that_are_missed_fail(shapes, trained, tmp_path, capsys):
    options = (
        "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", trained / "model_final.pth",
        "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 99.0, 0.5], ['segm', 'nothing', 1.0, 0.5]]",
    )  # fmt: skip
    assert train.main(["--eval-only", *arguments(shapes, *options)]) == 1
    found = json.loads((tmp_path / "results.json").read_text())["ap_percent"]["bbox"]["AP"]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"error: TEST.EXPECTED_RESULTS: bbox AP is {found:.4g}, expected 99 +- 0.5; "
        "segm nothing is not among the results, expected 1 +- 0.5"
    )


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--train-json" in shown
    assert "examples:" in shown
