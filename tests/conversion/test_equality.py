"""Converted to layers that compute what the old ones did, a model computes what it did."""

import pickle

import pytest
import torch
import torchvision
from torch import nn

from evonorm_plugins import convert
from evonorm_plugins.layers import BNReLU
from tests.conversion.blocks import ByMode, Functional, Residual, conv, mlp, randomize, resnet1d


def tiny_densenet():
    return torchvision.models.DenseNet(4, (1, 2), 8, num_classes=3, drop_rate=0.1)


def tiny_regnet():
    parameters = torchvision.models.regnet.BlockParams([1, 1], [8, 8], [4, 4], [2, 2], [1, 1], 0.25)
    return torchvision.models.RegNet(parameters, num_classes=3, stem_width=8)


def tiny_resnet():
    return torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=3, width_per_group=8
    )


def tiny_shufflenet():
    return torchvision.models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 16], num_classes=3)


def tiny_googlenet():
    return torchvision.models.GoogLeNet(num_classes=3, init_weights=False)


def tiny_video_resnet():
    video = torchvision.models.video.resnet
    blocks = [video.Conv3DSimple, video.Conv2Plus1D]
    return nn.Sequential(
        *(video.BasicStem(), video.BasicBlock(64, 64, blocks[0])),
        *(video.BasicBlock(64, 64, lambda *sizes, **options: blocks[1](*sizes[:2], 9, **options)),),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 3)),
    )


def torch_blocks():
    return nn.Sequential(conv(), ByMode(), Functional(4), Residual(4))


MODELS = {
    "resnet": (tiny_resnet, (3, 32, 32), 1e-5),
    "regnet": (tiny_regnet, (3, 32, 32), 1e-5),
    "densenet": (tiny_densenet, (3, 32, 32), 1e-5),
    "shufflenet": (tiny_shufflenet, (3, 32, 32), 1e-5),
    # Its auxiliary heads run in training alone; its inputs are large, or its pools are empty.
    "googlenet": (tiny_googlenet, (3, 64, 64), 1e-3),
    "mlp": (mlp, (6,), 1e-5),
    "resnet of sequences": (resnet1d, (3, 40), 1e-5),
    "video": (tiny_video_resnet, (3, 3, 12, 12), 1e-5),
}


def outputs_and_gradients(model, x, training, names):
    """Gradients by ``names``, those of the original: the norm of a pair is one level deeper."""
    model.train(training).zero_grad()
    torch.manual_seed(0)  # of dropout
    outputs = model(x)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    outputs = [y for y in outputs if y is not None]
    sum(y.square().mean() for y in outputs).backward()
    found = {n: p.grad for n, p in model.named_parameters()}
    deeper = {n: ".norm.".join(n.rsplit(".", 1)) for n in names}
    return outputs, {n: found[n] if n in found else found[deeper[n]] for n in names}


@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_and_gradients(name):
    build, size, eps = MODELS[name]
    torch.manual_seed(1)
    model = randomize(build()).double()
    converted, report = convert(model, "BN-ReLU", eps=eps)
    assert len(report.replaced) + len(report.affine) == sum(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()
    )
    again = pickle.loads(pickle.dumps(converted))
    x = torch.randn(4 if len(size) == 1 else 2, *size, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    for training in (False, True, False):
        expected = outputs_and_gradients(model, x, training, names)
        for other in (converted, again):
            found = outputs_and_gradients(other, x, training, names)
            torch.testing.assert_close(found, expected)


def test_forward_that_depends_on_the_mode():
    model = nn.Sequential(randomize(ByMode()), nn.Identity())
    converted, report = convert(model, "BN-ReLU")
    assert report.rewritten == ("0",)
    x = torch.randn(2, 3, 5, 5)
    names = [name for name, _ in model.named_parameters()]
    for training in (True, False):
        expected = outputs_and_gradients(model, x, training, names)
        found = outputs_and_gradients(converted, x, training, names)
        torch.testing.assert_close(found, expected)
    # The mode that counts is the module's own.
    for whole in (model, converted):
        whole.train()
        whole[0].eval()
    torch.testing.assert_close(model(x), converted(x))  # of one and of another kernel


def test_layer_of_ones_own():
    class Hard(BNReLU):
        def _activation(self, z):
            return nn.functional.hardswish(z)

    model = randomize(torchvision.models.mobilenet_v3_small(num_classes=3)).eval()
    # Those have ReLU.
    converted, report = convert(model, Hard, keep=["features.[123].*"], eps=1e-3)
    assert report.name == "Hard"
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(converted(x), model(x))
