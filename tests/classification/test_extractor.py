"""A trained classifier as the feature extractor of generated images."""

import json

import pytest
import torch
from torch import nn

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.classification.extractor import ClassifierFeatures, load_features
from evonorm_plugins.classification.models import build_model
from evonorm_plugins.classification.run import FORMAT
from evonorm_plugins.classification.trainer import build_classifier
from evonorm_plugins.cli.eval import main
from evonorm_plugins.errors import CheckpointError, ConfigError
from evonorm_plugins.metrics.extractor import CustomExtractor
from evonorm_plugins.training.config import to_dict

CONFIG = {"model": "resnet8_cifar", "width": 0.5, "data": "x", "val_data": "y"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_classifier(from_dict(CONFIG), 2).eval()


@pytest.fixture(scope="module")
def best(model, tmp_path_factory):
    """What a run leaves of a model."""
    path = tmp_path_factory.mktemp("run") / "best.pt"
    state = {"config": to_dict(from_dict(CONFIG)), "classes": ["bright", "dark"]}
    moments = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    FORMAT.save({**state, **moments, "record": {}, "model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def exported(best):
    out = best.with_name("features.pt2")
    assert main(["extractor", "--classifier", best, "--out", out, "--resolution", "16"]) == 0
    return out


@torch.no_grad()
def test_file_gives_what_the_last_layer_takes_and_logits(model, best, exported):
    taken = []
    hook = model.fc.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    std = torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    expected = model((images / 255 - mean) / std)
    hook.remove()
    extractor = CustomExtractor(exported)
    features, logits = extractor(images)
    torch.testing.assert_close(features, taken[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    # One image; another size, which is not a square.
    torch.testing.assert_close(extractor(images[:1])[0], taken[0][:1], rtol=1e-4, atol=1e-5)
    images = torch.randint(256, (3, 3, 20, 31), dtype=torch.uint8)
    small = torch.nn.functional.interpolate(
        images.float(), (16, 16), mode="bilinear", antialias=True
    )
    expected = model((small / 255 - mean) / std)
    torch.testing.assert_close(extractor(images)[1], expected, rtol=1e-4, atol=1e-5)


def test_scores_by_it(exported, make_zip, tmp_path):
    """Two draws of the same pictures are nearer to each other than bright ones to all."""
    real = make_zip("real.zip", 40, seed=2)
    distances = []
    for name, classes in (("floor", ("bright", "dark")), ("bright", ("bright",))):
        fake = make_zip(f"{name}.zip", 40, classes=classes, seed=3)
        command = ["gan", "--fake", fake, "--real", real, "--feature-extractor", exported, "--is"]
        command += ["--fid", "--prc", "--splits", "2", "--workers", "0", "--quiet"]
        command += ["--out", tmp_path / f"{name}.json"]
        assert main(command) == 0
        scores = json.loads((tmp_path / f"{name}.json").read_text())["scores"]
        names = {key.partition("[")[0] for key in scores}
        assert {"fid", "inception_score_mean", "precision_fraction", "recall_fraction"} <= names
        distances.append(next(v for k, v in scores.items() if k.startswith("fid[")))
    assert distances[0] < distances[1] / 2


@pytest.mark.parametrize("name", ["resnet8_cifar", "resnet50_cifar", "torchvision:squeezenet1_1"])
def test_last_layers_of_architectures(name):
    width = {} if ":" in name else {"width": 0.1}
    model = build_model(name, 7, "EvoNormS0" if width else None, **width)
    if ":" in name:  # logits are a mean over positions of its last convolution
        with pytest.raises(ConfigError, match="do not come from its last layer"):
            ClassifierFeatures(model, [0.5] * 3, [0.25] * 3, 32)
        return
    module = ClassifierFeatures(model, [0.5] * 3, [0.25] * 3, 32)
    features, logits = module(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert features.dim() == 2
    assert logits.shape == (2, 7)
    assert isinstance(module.last, nn.Linear | nn.Conv2d)
    assert not torch.equal(features, logits)


def test_refused(best, exported, tmp_path, capsys):
    out = tmp_path / "features.pt2"
    command = ["extractor", "--classifier", best, "--out"]
    assert main([*command, out]) == 2
    assert "does not say how large these were: give it (--resolution" in capsys.readouterr().err
    assert main([*command, exported, "--resolution", "16"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command, best, "--resolution", "16", "--force"]) == 2
    assert "is an input, too" in capsys.readouterr().err
    state = FORMAT.load(best)
    state = {k: v for k, v in state.items() if k not in ("format", "version", "mean")}
    FORMAT.save(state, out)
    with pytest.raises(CheckpointError, match="it has no 'mean'"):
        load_features(out, 16)
