"""tools/demo.py: the README's first command."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from evonorm_plugins.layers.graph.known import KNOWN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_demo(monkeypatch):
    """tools/demo.py with a small set of images."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = module.make_shapes_dataset

    def make_few(folder, **options):
        assert (options["train"], options["val"]) == (400, 50)
        return make(folder, **{**options, "train": 12, "val": 6})

    monkeypatch.setattr(module, "make_shapes_dataset", make_few)
    return module


@pytest.mark.detectron2
def test_demo(small_demo, tmp_path, capfd):
    options = ["--only", "detection", "--detector", "detectron2", "--iterations", "6"]
    assert small_demo.main([*options, "--output-dir", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    for part in ("iteration       6/6", "bbox ", "segm "):
        assert part in out
    assert (tmp_path / "run/predictions.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.detectron2
def test_nuclei(small_demo, tmp_path, capfd):
    mask = pytest.importorskip("pycocotools.mask")
    small_demo.make_shapes_dataset(tmp_path / "shapes", train=400, val=50, class_colours=True)
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "val"):
        content = json.loads((tmp_path / f"shapes/{split}.json").read_text())
        content["categories"] = content["categories"][:1]
        for annotation in content["annotations"]:
            annotation["category_id"] = content["categories"][0]["id"]
            rle = mask.merge(mask.frPyObjects(annotation["segmentation"], 128, 128))
            annotation["segmentation"] = rle | {"counts": rle["counts"].decode()}
        (data / f"instances_{split}.json").write_text(json.dumps(content))
        (data / split).symlink_to(tmp_path / f"shapes/{split}")
    command = ["--nuclei", str(data), "--output-dir", str(tmp_path / "out"), "--iterations"]
    assert small_demo.main([*command, "4"]) == 0
    out = capfd.readouterr().out
    for part in ("with EvoNormS0 on nuclei, 4 iterations", "iteration       4/4", "segm "):
        assert part in out
    assert (tmp_path / "out/nuclei/predictions.png").is_file()
    (data / "val").unlink()
    assert small_demo.main([*command, "2"]) == 2
    assert f"{data}/val is not there" in capfd.readouterr().err


@pytest.fixture
def in_process(small_demo, monkeypatch):
    """The same, whose commands run in this process: it has imported torch already."""

    def call(command, **_):
        _, *options = command
        options = options[1:] if options[0] == "-u" else options
        run, name, *arguments = (
            (runpy.run_module, *options[1:]) if options[0] == "-m" else (runpy.run_path, *options)
        )
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as end:
            run(name, run_name="__main__")
        return end.value.code or 0

    monkeypatch.setattr(small_demo.subprocess, "call", call)
    return small_demo


def test_demo_with_torchvision(in_process, tmp_path, capfd):
    pytest.importorskip("torchvision")
    options = ["--only", "detection", "--detector", "torchvision", "--iterations", "2"]
    assert in_process.main([*options, "--output-dir", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert out.startswith("training torchvision's Mask R-CNN with EvoNormS0 on coloured")
    for part in ("iteration       2/2   loss", "bbox ", "segm ", " s per iteration (median), peak"):
        assert part in out
    assert f"predictions.png and {tmp_path}/run/results.json." in out
    assert (tmp_path / "run/predictions.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def demo(small_demo, monkeypatch):
    """The same where Detectron2 is missing; the commands it would run are in ``calls``."""
    module = small_demo
    module.calls = []
    paths = {"train_json": "t.json", "train_images": "t", "val_json": "v.json", "val_images": "v"}
    monkeypatch.setattr(module, "make_shapes_dataset", lambda *args, **options: paths)
    monkeypatch.setattr(module.subprocess, "call", lambda c, **_: module.calls.append(c) or 7)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    return module


def test_torchvision_takes_the_place_of_a_missing_detectron2(demo, tmp_path, capsys):
    options = ("--only", "detection", "--norm", "EvoNormB0", "--output-dir", str(tmp_path))
    assert demo.main(options) == 7
    said = capsys.readouterr().out
    assert said.startswith(
        "Detectron2 is not installed: training torchvision's Mask R-CNN with Evo"
    )
    (command,) = demo.calls
    assert command[2].endswith("tools/train_torchvision.py")
    assert " --norm EvoNormB0 " in " ".join(command)


def test_detectron2_that_is_asked_for_and_missing(demo, tmp_path, capsys):
    options = ("--only", "detection", "--detector", "detectron2", "--output-dir", str(tmp_path))
    assert demo.main(options) == 1
    assert "error: --detector detectron2 needs Detectron2" in capsys.readouterr().err
    assert demo.calls == []


def test_digits(in_process, tmp_path, capfd):
    pytest.importorskip("sklearn")
    options = ["--only", "biggan", "--gan-steps", "2", "--output-dir", str(tmp_path)]
    assert in_process.main(options) == 0
    assert "classified as asked for" in capfd.readouterr().out
    assert (tmp_path / "digits/digits.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "digits/best.pt").exists()


def test_digits_with_the_layer_of_a_file(demo, tmp_path):
    KNOWN["EvoNormS1"].save(tmp_path / "found.json")
    options = ["--only", "biggan", "--norm", f"{tmp_path}/found.json", "--gan-steps", "2"]
    assert demo.main([*options, "--output-dir", str(tmp_path)]) == 7
    (command,) = demo.calls
    assert f"norm={tmp_path}/found.json" in command


def test_bad_options():
    for options, message in (
        (("--iterations", "0"), "--iterations 0 must be at least 1"),
        (("--norm", "none.json"), "--norm: cannot read the layer graph none.json: No such file"),
        (("--norm", "EvoNormS7"), "--norm: unknown norm-activation 'EvoNormS7'"),
    ):
        command = [sys.executable, str(ROOT / "tools/demo.py"), *options]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert out.returncode == 2
        assert message in out.stderr
        assert "Traceback" not in out.stderr
