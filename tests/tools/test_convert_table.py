"""The table of converted models."""

import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/experiments/convert_table.py"))


def test_rows_and_refusals(capsys):
    models = ["timm:lcnet_050", "timm:resnet18", "alexnet"]
    assert TOOL["main"]([*models, "--largest", "5e6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | with activation | affine | left | removed |")
    # 27 convolutions with norm and Hardswish; two gates with ReLU, and the last convolution's.
    assert lines[2] == "| `timm:lcnet_050` | 27 | 0 | 0 | 27 | 3 Conv2d |"
    assert lines[3] == "| `timm:resnet18` | 9 | 11 | 0 | 9 | 8 an addition |"
    assert lines[-1] == "- `alexnet`: AlexNet holds no norm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["resnt50"], "unknown model 'resnt50'"), (["resnet18", "--norm", "BN"], "'BN'")],
)
def test_bad_input(capsys, arguments, message):
    assert TOOL["main"](arguments) == 2
    assert message in capsys.readouterr().err


def test_every_classifier_of_torchvision_that_has_norms_is_listed():
    names = TOOL["torchvision_classifiers"]()
    assert len(names) == 57
    assert {"resnet18", "efficientnet_b7", "inception_v3", "vgg19_bn", "mnasnet1_3"} <= set(names)
    assert not {"vgg19", "alexnet", "squeezenet1_0", "vit_b_16"} & set(names)
