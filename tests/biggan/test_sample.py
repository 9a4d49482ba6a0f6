"""The command that samples: its files, what it replaces, what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from biggan import sample
from biggan.sampling import load_generator, sample_uint8


def test_command_line(saved, tmp_path, capsys):
    path = str(saved())
    generator, _ = load_generator(path)
    how = {"classes": [1, 0], "seed": 3, "truncation": 0.7}
    expected = torch.cat(list(sample_uint8(generator, 5, **how)))
    base = ["--checkpoint", path, "--n", "5", "--seed", "3", "--truncation", "0.7"]
    base += ["--classes", "bee", "0", "--device", "cpu"]
    assert sample.main([*base, "--out", str(tmp_path / "a.npz"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n"], record["seed"], record["classes"]) == (5, 3, "1 0")
    assert record == json.loads((tmp_path / "a.npz.json").read_text())
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], expected.permute(0, 2, 3, 1).numpy())
        assert arrays["arr_1"].tolist() == [1, 0, 1, 0, 1]
    assert sample.main([*base, "--out", str(tmp_path / "folder")]) == 0
    files = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert files == [f"{i:06d}_class{k}.png" for i, k in enumerate([1, 0, 1, 0, 1])]
    image = np.asarray(Image.open(tmp_path / "folder" / files[4]))
    assert np.array_equal(image, expected[4].permute(1, 2, 0).numpy())
    assert sample.main([*base, "--out", str(tmp_path / "grid.png"), "--columns", "5"]) == 0
    assert Image.open(tmp_path / "grid.png").size == (160, 32)
    sheet = ["--interpolate", "both", "--columns", "4", "--out", str(tmp_path / "sheet.png")]
    assert sample.main([*base, *sheet]) == 0
    assert Image.open(tmp_path / "sheet.png").size == (128, 160)


def test_command_line_says_what_is_wrong(saved, tmp_path, capsys):
    path = str(saved())

    def fails(*arguments):
        arguments = ["--checkpoint", path, "--device", "cpu", *arguments]
        with pytest.raises(SystemExit) as stop:
            raise SystemExit(sample.main(arguments))
        assert stop.value.code == 2
        return capsys.readouterr().err

    out = str(tmp_path / "x.png")
    assert "no class 'dog'; give a number from 0 to 2 or one of ant" in fails(
        "--out", out, "--classes", "dog"
    )
    assert "name a .png, a .npz or a folder" in fails("--out", "x.jpg")
    assert "truncation=-1.0 must be above 0" in fails("--out", out, "--truncation", "-1")
    assert "there is no checkpoint none.pt" in fails("--out", out, "--checkpoint", "none.pt")
    assert "holds the averaged generator alone" in fails("--out", out, "--no-ema")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").write_text("")
    assert "exists and is not an empty folder" in fails("--out", str(tmp_path / "full"))


def run_sample(capsys, *arguments):
    status = sample.main([str(a) for a in arguments])
    return status, capsys.readouterr().err


def test_results_are_replaced_and_nothing_else(saved, tmp_path, capsys):
    base = ["--checkpoint", saved(), "--n", 2]
    for name in ("a.png", "a.npz"):
        out = tmp_path / name
        for _ in range(2):  # the second time over the first
            assert run_sample(capsys, *base, "--out", out)[0] == 0
        ours = out.read_bytes()
        (tmp_path / f"{name}.json").write_text("{}")
        status, err = run_sample(capsys, *base, "--out", out)
        assert status == 2
        assert f"--out {out} is there already, and not of this command" in err
        assert out.read_bytes() == ours
        assert run_sample(capsys, *base, "--out", out, "--force")[0] == 0
    other = tmp_path / "b.png.json"
    other.write_text("[1]")
    assert run_sample(capsys, *base, "--out", tmp_path / "b.png")[0] == 2
    assert other.read_text() == "[1]"
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("name", ["best.png", "best.png.json"])
def test_the_checkpoint_is_no_output(saved, tmp_path, capsys, name):
    path = saved().rename(tmp_path / name)
    whole = path.read_bytes()
    out = tmp_path / "best.png"
    status, err = run_sample(capsys, "--checkpoint", path, "--n", 2, "--out", out, "--force")
    assert status == 2
    assert "is an input, too: name another file" in err
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [name]


REFUSED = [
    (["--device", "banana"], "device='banana' is no device: auto, cpu, cuda and cuda:1 are"),
    (["--device", "mps"], "device='mps' is no device"),
    (["--seed", "-1"], "--seed -1 must be from 0 to"),
    (["--seed", 10**30], f"--seed {10**30} must be from 0 to"),
    (["--n", 0], "--n 0 must be at least 1"),
    (["--batch-size", 0], "--batch-size 0 must be at least 1"),
    (["--columns", 0], "--columns 0 must be at least 1"),
    (["--standing-statistics", -1], "--standing-statistics -1 must be at least 0"),
    (["--n", 10**12], "GiB of memory are free"),
    (["--n", 10**12, "--batch-size", 10**12], "GiB of memory are free"),
    (["--columns", 10**12], "--n 3 in one picture: this takes"),
    (["--columns", 10**12, "--interpolate", "z"], f"--columns {10**12}: this takes"),
    (["--truncation", "nan"], "truncation=nan must be above 0"),
    (["--classes", "²"], "there is no class '²'"),
    (["--out", ""], "--out: the name is empty"),
    (["--out", "file/a.png"], "file is a file, not a folder"),
    (["--out", "file/a/b"], "file is a file, not a folder"),
    (["--out", "file"], "--out file is a file, not a folder"),
    (["--out", "folder.png"], "--out folder.png is a folder, not a file"),
    (["--out", "/proc/a.png"], "--out /proc/a.png cannot be written"),
    (["--checkpoint", "file"], "cannot read checkpoint file"),
    (["--checkpoint", "."], "there is no checkpoint ."),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_refused_before_any_work(saved, tmp_path, monkeypatch, capsys, arguments, message):
    base = ["--checkpoint", saved(), "--n", 3, "--out", "a.png"]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work/file").write_text("old")
    (tmp_path / "work/folder.png").mkdir()
    status, err = run_sample(capsys, *base, *arguments)
    assert status == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["file", "folder.png"]
    assert (tmp_path / "work/file").read_text() == "old"


def test_more_than_fits_on_the_disk(saved, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for out in ("a.npz", "a"):
        status, err = run_sample(
            capsys, "--checkpoint", saved(), "--n", 99, "--out", tmp_path / out
        )
        assert status == 1
        assert "no space left to write --n 99 images: they take 0.0 GiB" in err
        assert not (tmp_path / out).exists()
