"""The command detect train from the outside: training, evaluation, resuming, bad input."""

import csv
import json
from pathlib import Path

import pytest
import torch

from evonorm_plugins.integrations.torchvision import load_detector
from tests.integrations.torchvision.conftest import load_tool

FAST = (
    "--model", "maskrcnn_resnet18_fpn_small", "--min-size", "48", "--max-size", "48",
    "--batch", "2", "--workers", "0", "--warmup", "2", "--lr", "0.01", "--steps", "3",
    "--iterations", "4", "--allow-empty-categories",
)  # fmt: skip


def run(shapes, *options, **changes):
    paths = {k: v for k, v in {**shapes, **changes}.items() if v is not None}
    flags = [x for k, v in paths.items() for x in ("--" + k.replace("_", "-"), str(v))]
    return load_tool("train_torchvision").main([*flags, *FAST, *map(str, options)])


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Output folder of a run of four iterations."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert run(shapes, "--output-dir", out, "--log-every", 2) == 0
    return out


def test_a_run_leaves_table_picture_and_record(trained):
    record = json.loads((trained / "results.json").read_text())
    assert set(record["ap_percent"]) == {"bbox", "segm"}
    assert record["norms"] == ["EvoNormS0 without activation", "EvoNormS0(groups=32)"]
    assert record["cost"]["seconds_per_iteration"] > 0
    assert record["options"]["lr"] == 0.01
    assert record["iterations"] == 4
    assert (trained / "predictions.png").read_bytes()[:4] == b"\x89PNG"
    assert isinstance(json.loads((trained / "detections.json").read_text()), list)
    with open(trained / "steps.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["0", "1", "2", "3"]
    assert all(0 < float(row["total_loss"]) < 20 for row in rows)
    log = (trained / "log.txt").read_text()
    for part in ("iteration       2/4   loss", "AP50", "s per iteration (median), peak memory",
                 "13 norms and their activations", f"and {trained}/results.json."):  # fmt: skip
        assert part in log


def test_a_run_that_was_interrupted_ends_like_one_that_was_not(shapes, trained, tmp_path):
    torch.manual_seed(7)  # whatever the state of the process
    options = ("--output-dir", tmp_path / "out", "--resume")
    assert run(shapes, *options, "--iterations", 2) == 0
    torch.manual_seed(8)
    assert run(shapes, *options) == 0
    states = [
        torch.load(folder / "checkpoint.pt", weights_only=True)
        for folder in (trained, tmp_path / "out")
    ]
    assert states[0]["iteration"] == states[1]["iteration"] == 4
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def test_eval_only_gives_the_result_of_training_again(shapes, trained, tmp_path):
    options = ("--eval-only", "--weights", trained / "checkpoint.pt", "--output-dir", tmp_path)
    assert run(shapes, *options, train_json=None, train_images=None) == 0
    records = [json.loads((d / "results.json").read_text()) for d in (trained, tmp_path)]
    assert records[0]["ap_percent"] == records[1]["ap_percent"]
    assert records[1]["cost"] is None


def test_the_detector_of_a_checkpoint(trained):
    model, categories = load_detector(trained / "checkpoint.pt")
    assert categories == ["circle", "square", "triangle", "star"]
    assert not model.training
    (output,) = model([torch.rand(3, 40, 60)])
    assert output["masks"].shape[1:] == (1, 40, 60)


def test_a_loss_that_is_not_finite(shapes, tmp_path, capsys):
    options = ("--lr", 1e30, "--warmup", 0, "--clip-gradients", 0, "--iterations", 5)
    assert run(shapes, "--output-dir", tmp_path, *options) == 1
    said = capsys.readouterr().err
    assert "is not finite at iteration" in said
    assert "Learning rate 1e+30, image ids [" in said
    assert "There is no checkpoint yet." in said
    with open(tmp_path / "steps.csv") as file:
        assert len(list(csv.DictReader(file))) >= 1


def test_a_full_disk(shapes, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert run(shapes, "--output-dir", tmp_path, "--iterations", 1) == 1
    assert f"no space left to write {tmp_path}/checkpoint.pt" in message(capsys)


def message(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_a_folder_that_holds_a_run(shapes, trained, capsys):
    assert run(shapes, "--output-dir", trained, "--iterations", 9) == 2
    assert "holds a run already: go on with --resume" in message(capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--norm", "EvoNormB0"),
            "was trained with another norm: 32 of 32 norms differ, first backbone.body.bn1: "
            "EvoNormS0(groups=32) in the checkpoint, EvoNormB0 in the model",
        ),
        (("--model", "fasterrcnn_mobilenet_v3_large_fpn"), "is of another model"),
    ],
)
def test_a_checkpoint_of_another_model(shapes, trained, tmp_path, capsys, options, expected):
    weights = ("--weights", trained / "checkpoint.pt", "--output-dir", tmp_path)
    assert run(shapes, *weights, *options) == 2
    assert expected in message(capsys)


def test_a_checkpoint_of_other_categories(shapes, trained, tmp_path, capsys):
    content = json.loads(Path(shapes["val_json"]).read_text())
    content["categories"][0]["name"] = "disc"
    (tmp_path / "val.json").write_text(json.dumps(content))
    options = ("--eval-only", "--weights", trained / "checkpoint.pt", "--output-dir", tmp_path)
    assert run(shapes, *options, val_json=tmp_path / "val.json") == 2
    assert "4 categories (circle, square" in message(capsys)


def test_a_checkpoint_that_is_cut_off(shapes, trained, tmp_path, capsys):
    cut = tmp_path / "cut.pt"
    cut.write_bytes((trained / "checkpoint.pt").read_bytes()[:1000])
    assert run(shapes, "--weights", cut, "--output-dir", tmp_path / "out") == 2
    assert f"cannot read checkpoint {cut} (1000 bytes): it is cut off" in message(capsys)
    torch.save({"format": "evonorm-plugins biggan"}, cut)
    assert run(shapes, "--weights", cut, "--output-dir", tmp_path / "out") == 2
    assert f"{cut} is not a torchvision detector checkpoint" in message(capsys)


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        ((), {"train_json": "none.json"}, "annotation file none.json: No such file"),
        ((), {"train_json": None}, "train_json and train_images are both needed"),
        ((), {"val_images": "nowhere"}, "image folder nowhere is not there"),
        ((), {"val_json": None}, "val_json and val_images are both needed"),
        (("--output-dir", "/dev/null/out"), {}, "output_dir=/dev/null/out: /dev/null is a file"),
        (("--output-dir", "/dev/null"), {}, "output_dir=/dev/null is a file"),
        (("--output-dir", ""), {}, "output_dir=: the name is empty"),
        (("--output-dir", "/proc/out"), {}, "output_dir=/proc/out cannot be written"),
        (("--weights", "none.pt"), {}, "there is no checkpoint none.pt"),
        (("--eval-only",), {}, "evaluation needs weights"),
        (("--norm", "EvoNormX"), {}, "EvoNormX"),
        (("--device", "abacus"), {}, "device='abacus' is no device"),
        (("--batch", 0), {}, "batch=0 must be at least 1"),
        (("--config", "none.yaml"), {}, "there is no config file none.yaml"),
        (("--seed", -1), {}, "seed=-1 must be at least 0"),
        (("--workers", 10**6), {}, "workers=1000000: at most"),
        (("schedule=linear",), {}, "schedule='linear' is not one of multistep, cosine"),
        (("box_score=0.1",), {}, "did you mean box_score_thresh?"),
        (("box_score_thresh=x",), {}, "box_score_thresh='x' is not a number"),
        (("box_score_thresh",), {}, "'box_score_thresh' is not of the form key=value"),
        (("=3",), {}, "'=3' is not of the form key=value"),
    ],
)
def test_bad_input(shapes, tmp_path, capsys, options, changes, expected):
    assert run(shapes, "--output-dir", tmp_path / "out", *options, **changes) == 2
    assert expected in message(capsys)
    assert not (tmp_path / "out").exists()


def test_an_empty_annotation_file(shapes, tmp_path, capsys):
    content = json.loads(Path(shapes["train_json"]).read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    assert run(shapes, "--output-dir", tmp_path / "out", train_json=tmp_path / "empty.json") == 2
    assert "the list 'annotations' is empty" in message(capsys)


def test_results_as_json(shapes, trained, tmp_path, capsys):
    options = ("--eval-only", "--weights", trained / "checkpoint.pt", "--output-dir", tmp_path)
    assert run(shapes, *options, "--json", train_json=None, train_images=None) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "results.json").read_text())
    assert "AP in percent" in err


def test_the_detections_stay_where_the_last_step_fails(shapes, trained, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evonorm_plugins.integrations.torchvision.run.evaluate", fail)
    options = ("--eval-only", "--weights", trained / "checkpoint.pt", "--output-dir", tmp_path)
    assert run(shapes, *options, train_json=None, train_images=None) == 1
    assert isinstance(json.loads((tmp_path / "detections.json").read_text()), list)


def test_options_of_a_file(shapes, tmp_path):
    (tmp_path / "mine.yaml").write_text("iterations: 1\nnorm: EvoNormB0\nflip: false\n")
    paths = [f"{key}={path}" for key, path in shapes.items()]
    fast = [x for x in FAST if x not in ("--iterations", "4")]
    options = ("--config", tmp_path / "mine.yaml", f"output_dir={tmp_path / 'out'}", "steps=null")
    fast = [x for x in fast if x not in ("--steps", "3")]
    assert load_tool("train_torchvision").main([*fast, *map(str, options), *paths]) == 0
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert (record["iterations"], record["options"]["flip"]) == (1, False)
    assert record["norms"] == ["EvoNormB0", "EvoNormB0 without activation"]
