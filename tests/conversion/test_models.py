"""Some models of torchvision and timm: they convert, train one step and run in evaluation mode."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor

from evonorm_plugins import EvoNormS0, convert
from evonorm_plugins.conversion import activations_after_norm_acts
from evonorm_plugins.errors import ConvertError
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct
from tests.conversion.blocks import mlp, resnet1d

# Norms with an activation, norms without, activations that stay: counted by hand from the papers'
# and libraries' descriptions of the blocks.
CLASSIFIERS = {
    # stem; two in each of 8 blocks, the second before an addition; three shortcuts
    "resnet18": (9, 11, 8),
    # stem; three in each of 16 blocks, four shortcuts
    "resnet50": (33, 20, 16),
    # 52 in 17 blocks, first and last convolution; 17 projections
    "mobilenet_v2": (35, 17, 0),
    # nine gates with a ReLU; 11 + 1 of 12 blocks are projections
    "mobilenet_v3_small": (23, 11, 10),
    "mnasnet0_5": (35, 17, 0),
    "shufflenet_v2_x0_5": (37, 19, 0),
}
TIMM = {
    "resnet18": (9, 11, 8),
    # norms with an activation inside, before every convolution
    "resnetv2_50": (49, 0, 0),
    "mobilenetv3_small_050": (23, 11, 10),
    "ghostnet_050": (34, 46, 8),
    "tf_efficientnetv2_b0": (39, 20, 16),  # its convolutions with "same" padding are not traceable
}


IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def step(model, x, eval_size=None):
    """Loss of one SGD step, and the outputs in evaluation mode."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = model(x).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x)).all()


def check(model, expected, size=(3, 32, 32)):
    norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
    converted, report = convert(model, "EvoNormS0", groups=8)
    counts = report.counts()
    assert (counts["replaced"], counts["affine"], counts["stays"]) == expected
    assert counts["replaced"] + counts["affine"] == norms
    assert counts["removed"] == counts["replaced"]
    layers = [m for m in converted.modules() if isinstance(m, EvoNormS0)]
    assert sum(m.apply_act for m in layers) == expected[0]
    assert len(layers) == norms
    assert not any(isinstance(m, _BatchNorm) for m in converted.modules())
    x = torch.randn(2, *size)
    assert activations_after_norm_acts(converted.eval(), x) == []
    step(converted, x)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_of_torchvision(name):
    check(torchvision.models.get_model(name, num_classes=3), CLASSIFIERS[name])


def test_layer_graph_by_the_path_of_its_file(tmp_path):
    path = tmp_path / "found.json"
    KNOWN["EvoNormS1"].save(path)
    converted, report = convert(torchvision.models.resnet18(num_classes=3), str(path))
    assert (report.counts()["replaced"], report.counts()["affine"]) == CLASSIFIERS["resnet18"][:2]
    layers = [m for m in converted.modules() if isinstance(m, GraphNormAct) and m.apply_act]
    assert {m.computed_by for m in layers} == {"fused EvoNorm-S1"}
    step(converted, torch.randn(2, 3, 32, 32))
    path.write_text("{}")
    for name, message in ((path, "not a layer graph: it needs"), ("none.json", "No such file")):
        with pytest.raises(ConvertError, match=message):
            convert(torchvision.models.resnet18(num_classes=3), str(name))


@pytest.mark.parametrize("name", TIMM)
def test_classifier_of_timm(name):
    check(timm.create_model(name, num_classes=3), TIMM[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # as the resnet18 of images
        ("r3d_18", (9, 11, 8)),
        ("mc3_18", (9, 11, 8)),
        # a norm and a ReLU more within each factored convolution, the stem's included
        ("r2plus1d_18", (9 + 17, 11, 8)),
    ],
)
def test_video_model(name, expected):
    check(torchvision.models.get_model(name, num_classes=3), expected, size=(3, 4, 16, 16))


def test_models_of_vectors_and_sequences():
    check(mlp(), (2, 0, 0), size=(6,))
    check(resnet1d(), (2 + 1, 2 * 2, 2), size=(3, 40))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # bottom-up as the classifier, four convolutions with norm and ReLU in each of the heads
        ("maskrcnn_resnet50_fpn", (33, 20, 16)),
        ("maskrcnn_resnet50_fpn_v2", (33 + 8, 20 + 8, 17)),
        ("retinanet_resnet50_fpn_v2", (33 + 8, 20, 17)),
    ],
)
def test_detector(name, expected):
    options = {"num_classes": 3, "min_size": 64, "max_size": 64, "weights_backbone": None}
    model = torchvision.models.get_model(name, weights=None, **options)
    converted, report = convert(model, "EvoNormS0")
    counts = report.counts()
    assert (counts["replaced"], counts["affine"], counts["stays"]) == expected
    if name.endswith("rcnn_resnet50_fpn_v2"):
        return  # the heads differ in their norms alone
    images = [torch.rand(3, 64, 64)]
    targets = [
        {
            "boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
        }
    ]
    losses = converted.train()(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        assert activations_after_norm_acts(converted.eval(), images) == []


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_feature_extractor_of_torchvision(name):
    """Takes the layers under the names that the norms had, as it does before the conversion."""
    model = torchvision.models.resnet18(num_classes=3).eval()
    wanted = {"bn1": "stem", "layer1.0.bn2": "inner", "layer4": "last"}
    shapes = {k: y.shape for k, y in create_feature_extractor(model, wanted)(IMAGE).items()}
    converted = convert(model, name).model
    found = create_feature_extractor(converted, wanted)(IMAGE)
    assert {k: y.shape for k, y in found.items()} == shapes
    seen = {}
    for path, key in wanted.items():
        converted.get_submodule(path).register_forward_hook(
            lambda module, inputs, y, key=key: seen.__setitem__(key, y.clone())
        )
    converted(IMAGE)
    torch.testing.assert_close(found, seen)


def test_the_check_finds_what_it_looks_for():
    model = nn.Sequential(
        EvoNormS0(3), nn.Identity(), nn.ReLU(), EvoNormS0(3), nn.Conv2d(3, 3, 1), nn.SiLU()
    )
    model.append(EvoNormS0(3)).append(nn.Hardswish())
    found = activations_after_norm_acts(model, torch.rand(1, 3, 4, 4))
    assert found == [("0", "relu"), ("6", "hardswish")]
