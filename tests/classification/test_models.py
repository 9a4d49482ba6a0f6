"""Architectures against those of torchvision and timm with the same weights."""

import re

import pytest
import timm
import torch
from timm.layers import EvoNorm2dB0
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import efficientnet as torchvision_efficientnet

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.classification.models import build_model, list_models
from evonorm_plugins.classification.trainer import build_classifier
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers import EvoNormS0


def _count(model):
    return sum(p.numel() for p in model.parameters())


def _randomise(model):
    """No parameter and no statistic is what it starts from, where it could be forgotten."""
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)


def _copy_in_order(source, target):
    """Weights of one model into another whose modules come in the same order."""
    theirs, ours = source.state_dict(), target.state_dict()
    assert [t.shape for t in theirs.values()] == [t.shape for t in ours.values()]
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        mine.copy_(other)


def _stride_one(model, count):
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for module in strided[:count]:
        module.stride = (1, 1)


def _replace_relu6(model):
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())


@torch.no_grad()
def _same_outputs(ours, theirs, size, mode):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    a, b = ours.train(mode)(x), theirs.train(mode)(x)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("width", [0.5, 1.1])
def test_mobilenet_is_torchvisions_with_two_strides_less(width):
    theirs = torchvision_models.mobilenet_v2(width_mult=width, num_classes=10, dropout=0)
    _stride_one(theirs, 2)
    _replace_relu6(theirs)
    _randomise(theirs)
    ours = build_model("mobilenetv2_cifar", 10, "BN-ReLU", width=width)
    _copy_in_order(theirs, ours)
    _same_outputs(ours, theirs, 32, False)


def test_efficientnet_is_torchvisions_with_two_strides_less():
    blocks, last = torchvision_efficientnet._efficientnet_conf(
        "efficientnet_b0", width_mult=0.5, depth_mult=1.0
    )
    theirs = torchvision_efficientnet.EfficientNet(
        blocks, dropout=0, stochastic_depth_prob=0, num_classes=10, last_channel=last
    )
    # The last convolution of B0 has 1280 channels, of B0 at half the width 640.
    assert last in (None, 640)
    _stride_one(theirs, 2)
    _randomise(theirs)
    ours = build_model("efficientnet_b0_cifar", 10, "BN-Swish-1")
    _copy_in_order(theirs, ours)
    _same_outputs(ours, theirs, 32, False)


@pytest.mark.parametrize(
    ("ours", "norm", "theirs", "options"),
    [
        ("preact_resnet50d", "EvoNormS0", "resnetv2_50d_evos", {}),
        # timm's eps of B0 is 1e-3.
        ("preact_resnet50", "EvoNormB0(eps=1e-3)", "resnetv2_50", {"norm_layer": EvoNorm2dB0}),
    ],
)
def test_timms_weights_load_and_give_timms_outputs(ours, norm, theirs, options):
    theirs = timm.create_model(theirs, num_classes=7, **options)
    _randomise(theirs)
    for module in theirs.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    with torch.no_grad():  # moving variances of what the layers see, not at random
        theirs.train()(torch.randn(4, 3, 64, 64))
    ours = build_model(ours, 7, norm)
    ours.load_state_dict(theirs.state_dict())
    for mode in (False, True):
        _same_outputs(ours, theirs, 64, mode)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("preact_resnet101", 44_541_480),
        ("torchvision:mobilenet_v2", 3_504_872),
        ("torchvision:mnasnet1_0", 4_383_312),
        ("torchvision:efficientnet_b0", 5_288_548),
        ("torchvision:efficientnet_b5", 30_389_784),
    ],
)
def test_imagenets_models_have_the_known_numbers_of_parameters(model, parameters):
    """Those of timm's ``resnetv2_101`` and of torchvision's table of weights."""
    with torch.device("meta"):
        assert _count(build_model(model, 1000, "BN-ReLU")) == parameters


def test_resnet101_is_timms():
    with torch.device("meta"):
        theirs = timm.create_model("resnetv2_101", norm_layer=EvoNorm2dB0)
        ours = build_model("preact_resnet101", 1000, "EvoNormB0")
    shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]


def test_resnet_cifar_is_timms_with_two_strides_less():
    theirs = timm.create_model("resnetv2_50", num_classes=10)
    _stride_one(theirs, 2)
    theirs.stages[1].blocks[0].downsample.conv.stride = (1, 1)
    _randomise(theirs)
    ours = build_model("resnet50_cifar", 10, "BN-ReLU", width=1.0)
    _copy_in_order(theirs, ours)
    # Two convolutions have stride 2 in a block that projects: the second one and the projection.
    strided = [n for n, m in ours.named_modules() if getattr(m, "stride", 0) == (2, 2)]
    assert strided == [
        *("stages.2.blocks.0.downsample.conv", "stages.2.blocks.0.conv2"),
        *("stages.3.blocks.0.downsample.conv", "stages.3.blocks.0.conv2"),
    ]


@pytest.mark.parametrize("name", ["resnet50_cifar", "mobilenetv2_cifar", "efficientnet_b0_cifar"])
def test_feature_maps_are_an_eighth(name):
    model = build_model(name, 10, "EvoNormS0")
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *a: sizes.append(a[-1].shape[-1]))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    # Squeeze-excitation and the ResNet's last layer work on 1x1.
    assert min(s for s in sizes if s > 1) == 4


def test_width_and_options():
    narrow, wide = (build_model("mobilenetv2_cifar", 10, "BN-ReLU", width=w) for w in (0.9, 1.1))
    assert _count(narrow) < _count(build_model("mobilenetv2_cifar", 10, "BN-ReLU", width=1.0))
    assert _count(wide) > _count(narrow)
    model = build_model("resnet50_cifar", 10, "EvoNormS0(groups=8)")
    assert {m.groups for m in model.modules() if isinstance(m, EvoNormS0)} == {8}


def test_models_of_libraries_are_converted():
    model = build_model("torchvision:resnet18", 10, "EvoNormS0")
    assert any(isinstance(m, EvoNormS0) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    googlenet = build_model("torchvision:googlenet", 10, "EvoNormS0")
    assert googlenet(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    untouched = build_model("timm:resnet10t", 10, None)
    assert any(isinstance(m, nn.BatchNorm2d) for m in untouched.modules())


@pytest.mark.parametrize(
    ("name", "norm", "options", "message"),
    [
        ("resnet50_cifr", "BN-ReLU", {}, "did you mean 'resnet50_cifar'"),
        ("resnet50_cifar", "BN-ReLU", {"widht": 1}, "no option 'widht'; it has width"),
        ("mini_inception", "BN-ReLU", {"name": 1}, "no option 'name'; it has dropout"),
        ("resnet50_cifar", None, {}, "needs a norm"),
        ("resnet50_cifar", "BN-ReLU(groups=3)", {}, "groups"),
        ("mobilenetv2_cifar", "BN-ReLU", {"width": 0}, "width=0 must be above 0"),
        ("torchvision:resnet81", "BN-ReLU", {}, "did you mean 'resnet18'"),
        ("torchvision:fcos_resnet50_fpn", "BN-ReLU", {}, "no classifier"),
        ("torchvision:resnet18", "BN-ReLU", {"size": 3}, "size"),
        ("torchvision:googlenet", "BN-ReLU", {"aux_logits": True}, "leave out aux_logits"),
        ("torchvision:alexnet", "BN-ReLU", {}, "no norm"),
        ("keras:resnet18", "BN-ReLU", {}, "torchvision and timm"),
    ],
)
def test_bad_input(name, norm, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, 10, norm, **options)


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [
        ("torchvision:mobilenet_v2", "width_mult", "wide"),
        ("torchvision:mobilenet_v2", "width", 0.5),
        ("torchvision:mobilenet_v2", "round_nearest", 0),
        ("torchvision:mobilenet_v2", "num_classes", 10),
        ("timm:resnet18", "widht", 1),
        ("timm:resnet18", "act_layer", "relo"),
        ("timm:resnet18", "drop_rate", "1e-1"),
        ("mobilenetv2_cifar", "width", "wide"),
    ],
)
def test_a_bad_option_is_named(model, option, value):
    config = from_dict({"model": model, "model_options": {option: value}})
    with pytest.raises(ConfigError, match=re.escape(model)) as caught, torch.device("meta"):
        build_classifier(config, 10)
    assert re.search(rf"{option}\b.*{value!r}", str(caught.value))


def test_every_name_is_built():
    assert "resnet50_cifar" in list_models()
    for name in set(list_models()) - {"mini_inception", "resnet8_cifar"}:
        with torch.device("meta"):
            model = build_model(name, 3, "EvoNormB0")
        assert _count(model) > 100_000


@torch.no_grad()
@pytest.mark.parametrize(("name", "depth", "parameters"), [
    ("resnet8_cifar", 8, 77_850), ("resnet20_cifar", 20, 272_282),
])  # fmt: skip
def test_small_resnets(name, depth, parameters):
    model = build_model(name, 10, "BN-ReLU")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in convolutions if m.kernel_size == (3, 3)]) + 1 == depth
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == depth - 1
    assert _count(model) == parameters  # resnet20: 0.27 million (arXiv 1512.03385, Table 6)
    for block in model.blocks:
        block.conv2.weight.zero_()  # then it is its skip connection
    x = torch.randn(2, 3, 32, 32)
    y = model.stem(x)
    for block in model.blocks:
        y = y if block.downsample is None else block.downsample(block.norm1(y))
    assert y.shape == (2, 64, 8, 8)
    torch.testing.assert_close(model(x), model.fc(model.norm(y).mean((2, 3))))
