"""Images made on the spot, and runs that take a second."""

import functools
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.cli.classify import main


def png(pixels):
    """The bytes of a PNG of uint8 ``(H, W, 3)``."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def make_zip(tmp_path):
    """``make_zip(name, per_class)``: noise of 16x16, bright where the class is "bright"."""

    def make(name, per_class=16, size=16, classes=("bright", "dark"), seed=0):
        random = np.random.default_rng(seed)
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for k, label in enumerate(classes):
                for i in range(per_class):
                    pixels = random.integers(0, 128, (size, size, 3)) + (k == 0) * 127
                    archive.writestr(f"{label}/{i:03d}.png", png(pixels.astype(np.uint8)))
        return str(path)

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is decoded is kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def options(make_zip, tmp_path):
    """``options(**values)``: those of a tiny run, as a dictionary."""

    def make(**values):
        return {
            "data": make_zip("train.zip"),
            "val_data": make_zip("val.zip", 8, seed=1),
            "model": "mobilenetv2_cifar",
            "width": 0.1,
            "norm": "EvoNormS0",
            "batch_size": 8,
            "epochs": 2,
            "lr": 0.02,
            "padding": 2,
            "workers": 0,
            "device": "cpu",
            "progress": False,
            "output_dir": str(tmp_path / "run"),
            **values,
        }

    return make


@pytest.fixture
def config(options):
    """``config(**values)``: that of a tiny run, checked."""
    return lambda **values: from_dict(options(**values))


@pytest.fixture
def command(fork):
    """``command(arguments, ranks=1)``: the command line in processes of its own, not waited for."""
    return functools.partial(fork, main)
