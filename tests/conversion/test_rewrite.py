"""A module whose forward was rewritten is still the module it was."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evonorm_plugins import convert
from evonorm_plugins.errors import ConvertError
from tests.conversion.blocks import Functional, Residual, conv

ROOT = Path(__file__).resolve().parents[2]


def converted_block():
    torch.manual_seed(0)
    return convert(nn.Sequential(conv(), Residual()), "EvoNormS0", groups=2).model


def test_class_attributes_and_hooks():
    class Named(Functional):
        expansion = 4

        def describe(self):
            return self.kind

    model = Named()
    model.kind = "a kind"
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(output))
    converted, report = convert(model, "EvoNormS0")
    assert report.rewritten == ("",)
    assert isinstance(converted, Named)
    assert type(converted).__name__ == "ConvertedNamed"
    assert (converted.expansion, converted.describe()) == (4, "a kind")
    y = converted(torch.rand(1, 3, 4, 4))
    assert calls[0] is y


def test_copies():
    model = converted_block()
    x = torch.rand(2, 3, 6, 6)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    copies.append(torch.load(stored, weights_only=False))
    for other in copies:
        assert torch.equal(other(x), model(x))
        assert type(other[1]) is type(model[1])
        other[1].bn1.weight.data.zero_()
    assert model[1].bn1.weight.abs().sum() > 0


def test_loads_in_another_process(tmp_path):
    model = convert(torch_model(), "EvoNormS0").model.eval()
    x = torch.rand(1, 3, 32, 32)
    torch.save((model, x, model(x)), tmp_path / "model.pt")
    script = textwrap.dedent(
        f"""
        import torch
        model, x, y = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        assert type(model.layer1[0]).__name__ == "ConvertedBasicBlock"
        torch.testing.assert_close(model(x), y)
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def torch_model():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)


def test_compiled_and_exported():
    model = converted_block().eval()
    x = torch.rand(2, 3, 6, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def test_attribute_is_read_when_it_is_a_tensor():
    class Scaled(Functional):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("offset", torch.tensor(1.0))

        def forward(self, x):
            return F.relu(self.bn(self.conv(x))) * self.scale + self.offset

    converted = convert(Scaled(), "EvoNormS0").model
    x = torch.rand(1, 3, 4, 4)
    y = converted.bn(converted.conv(x))
    with torch.no_grad():
        converted.scale.fill_(3)
        converted.offset.fill_(5)
    assert torch.equal(converted(x), y * 3 + 5)
    converted(x).sum().backward()
    assert converted.scale.grad is not None


class WithArguments(Functional):
    def forward(self, x, shortcut=None, activate=True, *, factor=1):
        y = self.bn(self.conv(x))
        if activate:
            y = F.relu(y)
        if shortcut is not None:
            y = y + shortcut
        return y * factor


class Caller(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.block, self.arguments = WithArguments(), arguments

    def forward(self, x):
        return self.block(x, x.mean(), **self.arguments)


def test_arguments_as_they_are_given():
    converted = convert(Caller(factor=3), "EvoNormS0").model
    x = torch.rand(1, 3, 4, 4)
    block = converted.block
    assert torch.equal(converted(x), (block.bn(block.conv(x)) + x.mean()) * 3)
    with pytest.raises(ValueError, match=r"factor is 4: .* takes 3 only"):
        block(x, x.mean(), factor=4)
    with pytest.raises(ValueError, match="activate is False"):
        block(x, x.mean(), activate=False, factor=3)


def test_defaults_of_the_model_itself():
    converted = convert(WithArguments(), "EvoNormS0").model
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(converted(x), converted.bn(converted.conv(x)))
    assert torch.equal(converted(x=x, factor=1), converted(x))
    with pytest.raises(ValueError, match=r"shortcut is a tensor: .* takes None only"):
        converted(x, x)


class Caching(Functional):
    def forward(self, x):
        if not self.training and not hasattr(self, "mean"):
            self.mean = x.mean()
        y = self.bn(self.conv(x))
        return self.relu(y) if hasattr(self, "relu") else F.relu(y)


def test_forward_that_keeps_what_it_is_called_with():
    model = Caching()
    model.relu = nn.ReLU()
    converted = convert(model, "EvoNormS0").model.eval()
    assert not hasattr(converted, "mean")
    assert isinstance(pickle.loads(pickle.dumps(converted)), Caching)
    x = torch.rand(1, 3, 4, 4)
    converted(x)
    assert converted.mean == x.mean()
    with pytest.raises(ConvertError, match=r"forward of 0 \(Caching\): it changes its own mean"):
        convert(nn.Sequential(Caching()), "EvoNormS0")


def test_forward_that_makes_tensors():
    class Adding(Functional):
        def forward(self, x):
            return F.relu(self.bn(self.conv(x))) + torch.ones(1)

    with pytest.raises(ConvertError, match="it makes tensors of its own"):
        convert(Adding(), "EvoNormS0")


def test_called_in_several_ways():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = WithArguments(3, 3)

        def forward(self, x):
            return self.block(self.block(x), factor=2)

    with pytest.raises(ConvertError, match=r"relu out of the forward of block .*kinds of factor"):
        convert(Twice(), "EvoNormS0")
