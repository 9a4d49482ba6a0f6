"""What the tests of the search share: images and a tiny task."""

import os
import zipfile

import pytest
import torch

from evonorm_plugins import cli
from tests.biggan.pictures import picture


@pytest.fixture(scope="session")
def device():
    return torch.device(os.environ.get("EVONORM_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A zip of 3 classes of 20 images of 16x16."""
    path = tmp_path_factory.mktemp("images") / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k, label in enumerate("abc"):
            for i in range(20):
                archive.writestr(f"{label}/{i:02d}.png", picture(k, i, size=16))
    return str(path)


@pytest.fixture
def options(images, tmp_path, monkeypatch):
    """``options(**values)``: those of a task of a second, as a dictionary."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(**values):
        return {
            "data": images,
            "holdout": 12,
            "resolution": 12,
            "batch_size": 8,
            "val_batch_size": 5,
            "anchors": ["resnet50_cifar", "mobilenetv2_cifar"],
            "width": 0.03,
            "groups": 4,
            "steps": 4,
            "lr": 0.01,
            "quality_steps": 2,
            "quality_accuracy": 0,
            "stability_batch": 4,
            "stability_steps": 2,
            "device": os.environ.get("EVONORM_TEST_DEVICE", "cpu"),
            **values,
        }

    return make


@pytest.fixture(scope="session")
def ray():
    """Ray, started once: a start takes longer than most tests."""
    pytest.importorskip("ray", reason='needs Ray: pip install "ray[tune]"')
    from evonorm_plugins.training.cluster import connect

    ray = connect(None, unit="worker", cpus=1)
    yield ray
    ray.shutdown()


@pytest.fixture
def started_ray(ray, monkeypatch):
    """Searches of this process run on the ``ray`` that is there, and leave it running."""
    from evonorm_plugins.search import run, simulated

    class Kept:
        def __getattr__(self, name):
            return (lambda: None) if name == "shutdown" else getattr(ray, name)

    for module in (run, simulated):
        monkeypatch.setattr(module, "connect", lambda address, **needs: Kept())
    return ray


@pytest.fixture
def search(capsys):
    """``search(*arguments)``: ``(status, stdout, stderr)`` of ``evonorm search``."""

    def run(*arguments):
        try:
            status = cli.main(["search", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run
