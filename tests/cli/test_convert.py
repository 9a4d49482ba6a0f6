"""``evonorm convert`` and the counts that it prints."""

import json

import pytest
from torch import nn

from evonorm_plugins import convert
from evonorm_plugins.cli import convert as cli
from evonorm_plugins.cli import main


def test_counts_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 27 for each of 8 x 6 x 6
        nn.BatchNorm2d(8),  # 2
        nn.ReLU(),  # 1
        nn.GroupNorm(2, 8),  # 5
        nn.AdaptiveAvgPool2d(1),  # 1
        nn.Flatten(),
        nn.Linear(8, 5),  # 40
    )
    elements = 8 * 6 * 6
    found = cli.measure(model, 6)
    assert found["parameters"] == 27 * 8 + 16 + 16 + 45
    assert found["multiply_adds"] == 27 * elements + 40
    assert found["element_wise"] == (2 + 1 + 5 + 1) * elements
    # x sigmoid(v x) / std: v x, sigmoid, x sigmoid, variance, x / std, affine; affine alone 1.
    converted = cli.measure(convert(model, "EvoNormS0").model, 6)
    assert converted["multiply_adds"] == found["multiply_adds"]
    # For each of 8 channels, eps is added to the variance and a root taken.
    assert converted["element_wise"] == (6 + 1 + 1) * elements + 2 * 8


def run(capsys, *arguments):
    try:
        code = main(["convert", *arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def test_report(capsys):
    code, out, _ = run(capsys, "resnet18", "EvoNormS0", "--size", "64")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "norms with an activation, now EvoNormS0: 9"
    assert "  layer1.0.bn1 + layer1.0.relu" in lines
    assert "  layer1.0.bn2 before an addition" in lines
    assert "  layer1.0.relu after an addition" in lines
    assert "activations removed: 9" in lines
    # v of 9 layers: 64 in the stem and in two blocks, then twice 128, 256 and 512
    assert lines[-3].split() == ["parameters", "11,689,512", f"{11689512 + 3 * 64 + 2 * 896:,}"]


def test_a_video_model(capsys):
    """A clip of 16 frames: torchvision says 40.70 GFLOPS of r3d_18."""
    code, out, _ = run(capsys, "r3d_18", "EvoNormS0", "--size", "112")
    assert code == 0
    assert out.splitlines()[-2].split() == ["multiply-adds", *["40,696,553,472"] * 2]


def test_json(capsys):
    code, out, _ = run(capsys, "timm:resnetv2_50", "EvoNormB0", "--json", "--keep", "norm")
    result = json.loads(out)
    assert code == 0
    assert result["counts"]["replaced"] == 48
    assert result["left"] == {"norm": "to be kept"}
    assert result["after"]["parameters"] > result["before"]["parameters"]
    assert result["after"]["multiply_adds"] == result["before"]["multiply_adds"] > 4e9
    assert result["after"]["element_wise"] > result["before"]["element_wise"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnt50", "EvoNormS0"], "unknown model 'resnt50' (did you mean 'resnet50'?)"),
        (["timm:resnt50", "EvoNormS0"], "unknown model 'timm:resnt50' (did you mean"),
        (["keras:resnet50", "EvoNormS0"], "models come from torchvision and timm, not keras"),
        (["resnet18", "EvoNormS7"], "unknown norm-activation 'EvoNormS7'"),
        (["resnet18", "EvoNormS0(groups=no)"], "cannot read the options"),
        (["alexnet", "EvoNormS0"], "AlexNet holds no norm"),
        (["resnet18", "EvoNormS0", "--size", "0"], "argument --size: 0 must be at least 1"),
        (["resnet18", "EvoNormS0", "--keep", "norm"], "no norm of the model has a name like"),
        (["densenet121", "EvoNormS0", "--size", "8"], "does not run on an image of --size"),
    ],
)
def test_bad_input(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
