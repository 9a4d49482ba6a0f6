"""tools/experiments/mini_inception_nan.py: what it prints, and its exit status."""

import importlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools/experiments")
    return importlib.import_module("mini_inception_nan").main


@pytest.fixture
def images(tmp_path):
    """A zip of noise, four images in two folders."""
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
            data = io.BytesIO()
            pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data, format="png")
            archive.writestr(name, data.getvalue())
    return str(tmp_path / "images.zip")


def test_a_finite_run(main, images, capsys):
    norm = "EvoNormS0(groups=32)"
    assert main([images, "--norm", norm, "--steps", "2", "--batch-size", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 0", "step 1"]


def test_where_it_is_not(main, images, capsys):
    assert main([images, "--lr", "1e6", "--batch-size", "2", "--steps", "9", "--no-augment"]) == 1
    out = capsys.readouterr().out
    assert "the loss is" in out
    blocks = out.split("after each block\n")[1].splitlines()
    assert [line.split(":")[0].strip() for line in blocks] == ["stem", *map(str, range(10))]


def test_bad_input(main, images, tmp_path, capsys):
    assert main([str(tmp_path / "none.zip")]) == 2
    assert main([images, "--norm", "EvoNormS9"]) == 2
    assert "EvoNormS9" in capsys.readouterr().err
