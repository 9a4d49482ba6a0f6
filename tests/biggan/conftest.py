"""What the BigGAN tests share: tiny configs, made images, runs."""

import zipfile

import pytest
import torch

from biggan import checkpoint
from biggan import train as train_command
from biggan.config import from_dict
from biggan.generator import Generator
from evonorm_plugins.training.config import to_dict
from tests.biggan.pictures import picture

# A generator and a discriminator of a few thousand parameters, with attention.
TINY = {
    "resolution": 32,
    "channels": 8,
    "channel_multipliers": [2, 2, 1, 1],
    "attention": [16],
    "depth": 1,
    "z_size": 8,
    "embedding_size": 8,
    "batch_size": 8,
    "d_steps": 1,
    "steps": 4,
    "ema_start": 1,
    "workers": 0,
    "sample_rows": 2,
    "log_every": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """``tiny(norm="EvoNormB0")``: a checked config of three classes."""

    def tiny(**options):
        return from_dict({**TINY, "num_classes": 3, **options})

    return tiny


@pytest.fixture(scope="session")
def image_zip(tmp_path_factory):
    """A zip file of three classes of eight images, 32x32."""
    path = tmp_path_factory.mktemp("images") / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for label in range(3):
            for number in range(8):
                archive.writestr(f"set/class{label}/{number}.png", picture(label, number))
    return path


@pytest.fixture(scope="session")
def tiny_arguments(image_zip):
    """``tiny_arguments(folder, steps=8)``: a command line's options for a tiny run."""

    def tiny_arguments(folder, **options):
        values = {**TINY, "data": image_zip, "output_dir": folder, **options}
        return [f"{k}={v}" for k, v in values.items()]

    return tiny_arguments


@pytest.fixture(scope="session")
def any_config(tmp_path_factory):
    """A config file with nothing but the norm."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text("norm: EvoNormS0\n")
    return path


@pytest.fixture
def saved(tiny, tmp_path):
    """``saved("EvoNormS0")``: the path of a ``best.pt``."""

    def saved(norm="EvoNormS0", **more):
        config = tiny(norm=norm)
        state = {"config": to_dict(config), "classes": ["ant", "bee", "cow"], "step": 7}
        path = tmp_path / "best.pt"
        checkpoint.save({**state, "ema": Generator(config).state_dict(), **more}, path)
        return path

    return saved


@pytest.fixture(scope="session")
def start_train(fork, any_config):
    """``start_train(options, ranks=2)``: a process of biggan.train, or several."""

    def start_train(options, *, resume=False, **how):
        arguments = ["--config", any_config, *(["--resume"] if resume else []), *options]
        return fork(train_command.main, arguments, **how)

    return start_train


@pytest.fixture(scope="session")
def train(start_train):
    """``train(options, ranks=2)``: exit status and output of a run that ends by itself."""

    def train(options, **how):
        process = start_train(options, **how)
        output = "".join(process.communicate(timeout=150))
        return process.returncode, output

    return train
