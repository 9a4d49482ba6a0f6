"""Classes of a user's own: what follows their norms is proved, or they are refused."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, DeformConv, get_norm
from torch import nn

from evonorm_plugins import EvoNormS0
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.integrations.detectron2 import adapt, verify


def conv(norm, activation=None):
    return Conv2d(8, 8, 1, norm=get_norm(norm, 8), activation=activation)


class Wrapped(nn.Module):
    """Norm and activation given to Detectron2's convolution, and children in order."""

    def __init__(self, norm):
        super().__init__()
        self.conv = conv(norm, nn.ReLU())
        self.function = conv(norm, F.relu)
        self.project = conv(norm)
        self.sequence = nn.Sequential(nn.Conv2d(8, 8, 1), get_norm(norm, 8), nn.ReLU())

    def forward(self, x):
        return self.sequence(self.project(self.function(self.conv(x))))


def test_unknown_classes_are_refused_and_can_be_adapted():
    class Head(Wrapped):
        pass

    with pytest.raises(ConfigError, match=r"^Head cannot take NORM 'FRN': .*detectron2\.adapt"):
        Head("FRN")
    assert isinstance(Head("BN").conv.activation, nn.ReLU)

    built = adapt(Head)("FRN")
    assert built.conv.activation is None
    assert built.conv.norm.apply_act
    assert built.function.activation is None
    assert not built.project.norm.apply_act
    assert built.sequence[1].apply_act
    assert isinstance(built.sequence[2], nn.Identity)
    assert verify(built, torch.randn(1, 8, 4, 4)).ok


def test_the_refusal_names_the_config_key():
    class Head(nn.Module):
        @configurable
        def __init__(self, *, norm):
            super().__init__()
            self.conv = conv(norm)

        @classmethod
        def from_config(cls, cfg):
            return {"norm": cfg.MODEL.SEM_SEG_HEAD.NORM}

    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NORM = "EvoNormB0"
    with pytest.raises(
        ConfigError, match=r"^Head cannot take NORM 'EvoNormB0' of MODEL\.SEM_SEG_HEAD\.NORM: "
    ):
        Head(cfg)


def test_a_function_that_asks_for_a_norm_is_named():
    with pytest.raises(ConfigError, match=r"^conv\(\) cannot take NORM 'EvoNormS0': "):
        conv("EvoNormS0")


class OwnActivation(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Parts(nn.Module):
    """Two convolutions with norms, and whatever a test puts between and behind."""

    def __init__(self, norm, **parts):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 1), get_norm(norm, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 1), get_norm(norm, 8)
        for name, part in parts.items():
            setattr(self, name, part)


def test_activations_of_ones_own_and_dropout():
    @adapt
    class Block(Parts):
        def forward(self, x):
            x = self.act(self.norm1(self.conv1(x)))
            return self.relu(self.dropout(self.norm2(self.conv2(x))))

    block = Block("EvoNormS0", act=OwnActivation(), relu=nn.ReLU(), dropout=nn.Dropout2d())
    assert block.norm1.apply_act
    assert block.norm2.apply_act
    assert [type(m) for m in (block.act, block.relu)] == [nn.Identity, nn.Identity]
    assert type(block.dropout) is nn.Dropout2d
    assert verify(block, torch.randn(1, 8, 4, 4)).ok


def test_one_relu_for_all():
    @adapt
    class Plain(Parts):
        def forward(self, x):
            x = self.relu(self.norm1(self.conv1(x)))
            return self.relu(self.norm2(self.conv2(x)))

    block = Plain("EvoNormS0", relu=nn.ReLU())
    assert isinstance(block.relu, nn.Identity)
    assert verify(block, torch.randn(1, 8, 4, 4)).ok

    @adapt
    class Residual(Parts):
        def forward(self, x):
            y = self.relu(self.norm1(self.conv1(x)))
            return self.relu(self.norm2(self.conv2(y)) + x)

    with pytest.raises(
        ConfigError, match=r"Residual cannot .*: relu follows norm1, and .*addition"
    ):
        Residual("EvoNormS0", relu=nn.ReLU())
    assert isinstance(Residual("BN", relu=nn.ReLU()).relu, nn.ReLU)


def test_one_relu_object_in_several_places():
    @adapt
    class Tower(nn.Sequential):
        def __init__(self, norm):
            relu = nn.ReLU()
            layers = [nn.Conv2d(8, 8, 1), get_norm(norm, 8), relu]
            super().__init__(*layers, nn.Conv2d(8, 8, 1), get_norm(norm, 8), relu)

    tower = Tower("EvoNormS0")
    assert not any(isinstance(m, nn.ReLU) for m in tower)
    assert verify(tower, torch.randn(1, 8, 4, 4)).ok


def test_gates_stay():
    """The range of a sigmoid is why it is there: the affine transform is before it."""

    @adapt
    class Gate(Parts):
        def forward(self, x):
            gate = torch.sigmoid(self.norm1(self.conv1(x)))
            return x * gate * self.sigmoid(self.norm2(self.conv2(x)))

    gate = Gate("EvoNormS0", sigmoid=nn.Sigmoid())
    assert isinstance(gate.sigmoid, nn.Sigmoid)
    assert not gate.norm1.apply_act
    assert not gate.norm2.apply_act
    x = torch.randn(1, 8, 4, 4)
    assert (gate(x) / x).max() < 1
    assert verify(gate, x).ok


def test_activations_written_into_forward_are_refused():
    @adapt
    class Stem(Parts):
        def forward(self, x):
            x = F.relu_(self.norm1(self.conv1(x)))
            return F.relu_(self.norm2(self.conv2(x)))

    with pytest.raises(
        ConfigError, match=r"Stem cannot .*norm1 .*relu_?\(\) .*the forward of Stem"
    ):
        Stem("EvoNormS0")

    @adapt
    class Swish(Parts):
        def forward(self, x):
            x = self.norm1(self.conv1(x))
            return self.norm2(self.conv2(x * torch.sigmoid(x)))

    with pytest.raises(ConfigError, match=r"Swish cannot .*norm1 .*the forward of Swish"):
        Swish("EvoNormS0")


def test_what_cannot_be_traced_is_not_guessed():
    @adapt
    class Branches(Parts):
        def forward(self, x):
            if x.mean() > 0:
                x = -x
            return self.relu(self.norm2(self.norm1(self.conv1(x))))

    with pytest.raises(ConfigError, match=r"Branches cannot .*norm.: .*cannot be traced"):
        Branches("EvoNormS0", relu=nn.ReLU())


def test_an_output_that_is_activated_and_not():
    @adapt
    class Both(Parts):
        def forward(self, x):
            x = self.norm1(self.conv1(x))
            return self.norm2(self.conv2(self.relu(x))) + x

    with pytest.raises(ConfigError, match=r"Both cannot .*norm1: .*relu, and unactivated to"):
        Both("EvoNormS0", relu=nn.ReLU())


def test_deformable_convolutions():
    @adapt
    class Deformable(nn.Module):
        def __init__(self, norm, activation):
            super().__init__()
            self.offset = nn.Conv2d(8, 18, 3, padding=1)
            options = {"padding": 1, "norm": get_norm(norm, 8), "activation": activation}
            self.conv = DeformConv(8, 8, 3, **options)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    x = torch.randn(1, 8, 6, 6)
    for activation in (F.relu, nn.ReLU(), None):
        block = Deformable("EvoNormS0", activation)
        assert block.conv.activation is None
        assert block.conv.norm.apply_act == (activation is not None)
        assert verify(block, x).ok


def test_layers_from_outside_are_left_alone():
    @adapt
    class Outer(nn.Module):
        def __init__(self, inner, norm):
            super().__init__()
            self.inner = inner
            self.conv = conv(norm, F.relu)

        def forward(self, x):
            return self.conv(self.inner(x))

    inner = nn.Sequential(EvoNormS0(8), nn.ReLU())
    outer = Outer(inner, "EvoNormS0")
    assert isinstance(outer.inner[1], nn.ReLU)
    assert outer.conv.activation is None
