"""Which norms take which activation with them, and what stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from evonorm_plugins import EvoNormS0, convert
from evonorm_plugins.conversion import activations_after_norm_acts
from tests.conversion.blocks import Forward, Functional, Residual, Untraceable, conv

BN = nn.BatchNorm2d


def run(model, size=8):
    """Convert, and see that the result runs forward and backward."""
    converted, report = convert(model, "EvoNormS0", groups=2)
    converted(torch.rand(2, 3, size, size)).sum().backward()
    return converted, report


def layer_and_act(model, name):
    layer = model.get_submodule(name)
    return type(layer).__name__, layer.apply_act


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU()),
        *(nn.LeakyReLU(), nn.ELU(), nn.PReLU(), nn.PReLU(4), nn.Mish(), nn.Softplus()),
    ],
)
def test_sequential_keeps_its_keys(activation):
    model = nn.Sequential(conv(), BN(4), activation, conv(4, 4), BN(4))
    converted, report = run(model)
    assert report.replaced == {"1": "2"}
    assert report.affine == {"4": "the output"}
    assert report.removed == {"2": 1}
    assert isinstance(converted[2], nn.Identity)
    assert set(converted.state_dict()) == {
        *("0.weight", "3.weight", "1.weight", "1.bias", "1.v", "4.weight", "4.bias")
    }


@pytest.mark.parametrize(
    "function",
    [
        F.relu, F.silu, F.hardswish, F.gelu, torch.relu, torch.relu_, F.relu_,
        lambda y: y.relu(), lambda y: y.relu_(), lambda y: F.leaky_relu(y, 0.1, inplace=True),
        lambda y: y * torch.sigmoid(y), lambda y: y.sigmoid().mul(y),
        lambda y: y * F.relu6(y + 3) / 6, lambda y: y * (F.relu6(y + 3) / 6),
        lambda y: y * torch.tanh(F.softplus(y)), lambda y: times_sigmoid_in_place(y),
    ],
)  # fmt: skip
def test_functions_and_written_out_activations(function):
    model = Forward(lambda self, x: function(self.bn(self.conv(x))), conv=conv(), bn=BN(4))
    converted, report = run(model)
    assert list(report.replaced) == ["bn"]
    assert sum(report.removed.values()) == 1
    assert not report.affine
    assert report.rewritten == ("",)
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(converted(x), converted.bn(converted.conv(x)))


class HSigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x):
        return self.relu(x + 3) / 6


class HSwish(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigmoid = HSigmoid()

    def forward(self, x):
        return x * self.sigmoid(x)


class Own(nn.Module):
    def forward(self, x):
        return F.relu(x)


@pytest.mark.parametrize("activation", [HSwish, Own])
def test_activation_classes_of_ones_own(activation):
    shared = activation()
    model = nn.Sequential(conv(), BN(4), shared, conv(4, 4), shared, conv(4, 4), BN(4), shared)
    converted, report = run(model)
    assert report.replaced == {"1": "2", "6": "7"}
    assert report.stays == {"4": "Conv2d 3"}
    assert isinstance(converted[4], activation)
    assert isinstance(converted[7], nn.Identity)


def test_shared_relu_and_residual_addition():
    model = nn.Sequential(conv(), Residual())
    converted, report = run(model)
    assert report.replaced == {"1.bn1": "1.relu", "1.bn2": "1.relu"}
    assert report.affine == {"1.bn3": "an addition"}
    assert report.removed == {"1.relu": 2}
    assert report.stays == {"1.relu": "an addition"}
    assert report.rewritten == ("1",)
    block = converted[1]
    assert isinstance(block, Residual)
    assert isinstance(block.relu, nn.ReLU)
    x = torch.randn(2, 4, 6, 6)
    y = block.bn2(block.conv2(block.bn1(block.conv1(x))))
    assert torch.equal(block(x), torch.relu(block.bn3(block.conv3(y)) + x))


def times_sigmoid_in_place(y):
    y *= y.sigmoid()
    return y


def test_addition_in_place_that_others_see():
    def forward(self, x):
        y = self.bn(self.conv(x))
        same = y
        y += x.mean()
        return F.relu(self.bn2(self.conv2(same)))

    children = {"conv": conv(), "bn": BN(4), "conv2": conv(4, 4), "bn2": BN(4)}
    model = Forward(forward, **children)
    converted = convert(model, "BN-ReLU").model.eval()
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(converted(x), model.eval()(x))


def test_one_relu_object_at_several_places():
    relu = nn.ReLU()
    model = nn.Sequential(conv(), BN(4), relu, conv(4, 4), relu, nn.Sequential(conv(4, 4), relu))
    converted, report = run(model)
    assert report.replaced == {"1": "2"}
    assert report.stays == {"4": "Conv2d 3", "5.1": "Conv2d 5.0"}
    assert isinstance(converted[2], nn.Identity)
    assert isinstance(converted[4], nn.ReLU)


def test_activation_of_another_module_than_the_norm():
    model = Forward(
        lambda self, x: F.relu(self.features(x), inplace=True).mean((2, 3)),
        features=nn.Sequential(conv(), BN(4)),
    )
    converted, report = run(model)
    assert report.replaced == {"features.1": "relu() in the forward of the model"}
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(converted(x), converted.features(x).mean((2, 3)))


def test_preactivation():
    def forward(self, x):
        x = self.stem(x)
        out = self.act1(self.bn1(x))
        shortcut = self.shortcut(out)
        return self.conv2(self.act2(self.bn2(self.conv1(out)))) + shortcut

    model = Forward(
        forward, stem=conv(), bn1=BN(4), act1=nn.ReLU(), shortcut=conv(4, 4), conv1=conv(4, 4),
        bn2=BN(4), act2=nn.ReLU(), conv2=conv(4, 4),
    )  # fmt: skip
    _, report = run(model)
    assert report.replaced == {"bn1": "act1", "bn2": "act2"}


def test_reader_after_an_activation_in_place_reads_its_result():
    def forward(self, x):
        y = self.bn(self.conv(x))
        z = self.relu(y)
        return self.last(z) + y

    children = {"conv": conv(), "bn": BN(4), "relu": nn.ReLU(inplace=True), "last": conv(4, 4)}
    converted, report = run(Forward(forward, **children))
    assert report.replaced == {"bn": "relu"}
    x = torch.rand(2, 3, 5, 5)
    y = converted.bn(converted.conv(x))
    assert torch.equal(converted(x), converted.last(y) + y)


@pytest.mark.parametrize(
    ("between", "pair"),
    [
        (nn.Identity(), True),
        (nn.Dropout(0.1), True),
        (nn.Dropout2d(0.1), True),
        (nn.MaxPool2d(2), False),
        (nn.AvgPool2d(2), False),
        (nn.Conv2d(4, 4, 1), False),
        (nn.Sigmoid(), False),
    ],
)
def test_between_norm_and_activation(between, pair):
    _, report = run(nn.Sequential(conv(), BN(4), between, nn.ReLU()))
    assert (len(report.replaced), len(report.affine)) == ((1, 0) if pair else (0, 1))
    assert len(report.stays) == (0 if pair else 1)


def test_squeeze_excitation_and_gates_stay():
    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        gate = self.hardsigmoid(self.fc2(self.relu(self.fc1(y.mean((2, 3), keepdim=True)))))
        return self.bn2(self.conv2(y * gate))

    model = Forward(
        forward, conv1=conv(), bn1=BN(4), act=nn.Hardswish(), fc1=nn.Conv2d(4, 2, 1),
        relu=nn.ReLU(), fc2=nn.Conv2d(2, 4, 1), hardsigmoid=nn.Hardsigmoid(), conv2=conv(4, 4),
        bn2=BN(4),
    )  # fmt: skip
    converted, report = run(model)
    assert report.replaced == {"bn1": "act"}
    assert report.affine == {"bn2": "the output"}
    assert report.stays == {"relu": "Conv2d fc1"}
    assert isinstance(converted.hardsigmoid, nn.Hardsigmoid)


@pytest.mark.parametrize(
    "norm",
    [
        *(BN(4), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)),
        *(nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4, affine=False)),
        FrozenBatchNorm2d(4),
    ],
)
def test_every_kind_of_norm(norm):
    converted, report = run(nn.Sequential(conv(), norm, nn.ReLU()))
    assert report.replaced == {"1": "2"}
    assert isinstance(converted[1], EvoNormS0)
    assert converted[1].num_features == 4


def test_norms_that_are_left():
    def forward(self, x):
        y = self.act1(self.bn(self.conv(x))).mean((2, 3))
        return self.ln(self.act2(self.bn1d(self.fc(y))))

    model = Forward(
        forward, conv=conv(), bn=BN(4), act1=nn.ReLU(), fc=nn.Linear(4, 4),
        bn1d=nn.BatchNorm1d(4), act2=nn.ReLU(), ln=nn.LayerNorm(4),
    )  # fmt: skip
    converted, report = run(model)
    assert report.left == {"ln": "LayerNorm normalizes the last dimensions, not (N, C, ...)"}
    assert report.replaced == {"bn": "act1", "bn1d": "act2"}
    assert isinstance(converted.ln, nn.LayerNorm)


def test_norms_of_what_is_no_image():
    """What stands between norm and activation, in the forms for sequences and volumes too."""
    model = nn.Sequential(
        *(conv(), BN(4), nn.ReLU(), nn.Flatten(2)),
        *(nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4), nn.Dropout1d(0.1), nn.ReLU()),
        *(nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4), nn.SiLU(), nn.Unflatten(2, (5, 5, 1))),
        *(nn.Conv3d(4, 4, 1), nn.InstanceNorm3d(4), nn.Dropout3d(0.1), nn.ReLU()),
        *(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.ReLU()),
        *(nn.Linear(100, 4), nn.SyncBatchNorm(4), nn.ReLU()),
        *(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
    )
    converted, report = convert(model, "EvoNormS0", groups=2)
    pairs = {"1": "2", "5": "7", "9": "10", "13": "15", "17": "19", "21": "22"}
    assert report.replaced == pairs
    assert report.affine == {"24": "the output"}
    assert not report.left
    x = torch.randn(2, 3, 5, 5)
    assert activations_after_norm_acts(converted, x) == []
    converted(x).square().sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


def test_kept_by_name():
    model = nn.Sequential(Functional(), Functional(4), Functional(4))
    converted, report = convert(model, "EvoNormS0", keep=["1.*"])
    assert report.left == {"1.bn": "to be kept"}
    assert list(report.replaced) == ["0.bn", "2.bn"]
    assert converted[1].forward.__func__ is Functional.forward
    assert report.stays == {"relu() in the forward of 1": "BatchNorm2d 1.bn"}


def test_part_that_runs_several_times():
    def forward(self, x):
        return self.head(self.stem(x)) + self.head(self.stem(2 * x))

    _, report = run(Forward(forward, stem=conv(), head=nn.Sequential(conv(4), BN(4), nn.ReLU())))
    assert report.replaced == {"head.1": "head.2"}


def test_children_where_the_model_cannot_be_traced():
    stem = nn.Sequential(conv(), BN(4), nn.ReLU(), conv(4, 4), BN(4))
    model = Untraceable(stem=stem, bn=BN(4), act=nn.ReLU(), head=Functional(4))
    converted, report = run(model)
    assert report.replaced == {
        "stem.1": "stem.2",
        "bn": "act",
        "head.bn": "relu() in the forward of head",
    }
    assert report.affine == {"stem.4": "the output of stem"}
    assert isinstance(converted.act, nn.Identity)


def test_list_with_a_forward_of_its_own():
    class Features(nn.ModuleDict):
        def forward(self, x):
            found = []
            for child in self.values():
                x = child(x)
                found.append(x)
            return found[-1]

    _, report = run(Features({"conv": conv(), "bn": BN(4), "act": nn.ReLU()}))
    assert report.replaced == {"bn": "act"}


def test_part_that_cannot_be_traced():
    part = Untraceable(conv=conv(4, 4), bn=BN(4), act=nn.SiLU())
    model = nn.Sequential(conv(), BN(4), part, conv(4, 4), BN(4), nn.ReLU())
    _, report = run(model)
    assert report.replaced == {"4": "5", "2.bn": "2.act"}
    assert report.affine == {"1": "Untraceable 2"}


def test_model_that_is_a_norm():
    model = nn.BatchNorm2d(4)
    converted, report = convert(model, "EvoNormS0")
    assert isinstance(converted, EvoNormS0)
    assert not converted.apply_act
    assert list(report.affine) == [""]
