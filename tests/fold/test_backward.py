"""Norms that go into the layer before them."""

import pytest
import torch
from torch import nn

from evonorm_plugins import fold_for_inference, get_norm_act, layers

# Layer, norm, input, and how many parameters go: 2 C of the norm, less C for a bias that is new.
PAIRS = {
    "2d": (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), (2, 3, 7, 5), 8),
    "bias": (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), (2, 3, 7, 5), 16),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, bias=False), nn.BatchNorm2d(9), (2, 6, 7, 5), 9),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), (2, 6, 7, 5), 24),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2), nn.BatchNorm2d(4, eps=0.1), (2, 3, 7, 5), 8),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (2, 3, 7, 5), 8),
    "1d": (nn.Conv1d(3, 8, 3, bias=False), nn.BatchNorm1d(8), (2, 3, 7), 8),
    "3d": (nn.Conv3d(3, 4, 3, bias=False), nn.BatchNorm3d(4), (1, 3, 4, 5, 6), 4),
    "no affine": (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), (2, 3, 7, 5), 0),
    "cross-replica": (nn.Conv2d(3, 4, 1), layers.CrossReplicaBatchNorm2d(4), (2, 3, 7, 5), 8),
    "linear": (nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), (5, 6), 8),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), (2, 4, 5, 3), 12),
    "transposed, grouped": (
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 3), 6,
    ),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 5), 12),
    "EvoNorm without activation": (
        nn.Conv2d(3, 8, 3, bias=False), layers.EvoNormS0(8, apply_act=False), (2, 3, 7, 5), 8,
    ),
    "B0 without activation": (
        nn.Conv2d(3, 8, 3), layers.SyncEvoNormB0(8, apply_act=False), (2, 3, 7, 5), 16,
    ),
    "BN of the registry": (nn.Conv2d(3, 8, 3), layers.BNReLU(8, apply_act=False), (2, 3, 7, 5), 16),
    "RS + rej": (nn.Conv2d(3, 8, 3), layers.RSRejLayer(8, apply_act=False), (2, 3, 7, 5), 16),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_norm_goes_into_the_layer_before(case, check):
    layer, norm, shape, fewer = PAIRS[case]
    folded, fell = check(nn.Sequential(layer, norm), *shape)
    assert fell == fewer
    assert not [m for m in folded.modules() if "Norm" in type(m).__name__]
    (entry,) = folded.fold_report.norms
    assert (entry.name, entry.folded, entry.into, entry.reason) == ("1", "norm", ("0",), "")


def test_numbers_by_hand():
    """BN of mean 1, variance 4 - eps, gamma 6, beta 5: times 3, plus 5 - 3."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    for tensor, value in (
        (model[0].weight, 2), (model[0].bias, 10), (model[1].running_mean, 1),
        (model[1].running_var, 4 - 1e-5), (model[1].weight, 6), (model[1].bias, 5),
    ):  # fmt: skip
        tensor.data.fill_(value)
    conv = fold_for_inference(model)[0]
    assert conv.weight.item() == 6
    assert conv.bias.item() == 32


def test_frozen_batch_norm(check):
    """Torchvision's has buffers: the bias that the convolution gets is a parameter more."""
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d(8)
    frozen.weight.normal_()
    frozen.bias.normal_()
    folded, fell = check(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), frozen), 2, 3, 7, 5)
    assert fell == -8
    assert type(folded[1]) is nn.Identity


def test_a_linear_layer_of_vectors(check):
    """The graph tells that they are vectors: whatever ends with channels goes into it."""
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(12, 8, bias=False), layers.BNReLU(8)),
        *(nn.Linear(8, 8), layers.EvoNormS0(8, apply_act=False), nn.SiLU()),
        *(nn.Linear(8, 8), layers.BNSwish(8)),
    )
    folded, fell = check(model, 5, 3, 4)
    assert fell == 8 + 16 + 16
    assert [type(m) for m in folded][2::3] == [nn.ReLU, nn.SiLU]
    assert [entry.into for entry in folded.fold_report.norms] == [("1",), ("3",), ("6",)]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("BN-ReLU", nn.ReLU),
        ("BN-Swish-1", nn.SiLU),
        ("BN-Swish", layers.BNSwish),
        ("BN-PReLU", layers.BNPReLU),
    ],
)
def test_activation_stays(name, left, check):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), get_norm_act(name, 8))
    folded, fell = check(model, 2, 3, 7, 5)
    assert fell == 8
    assert type(folded[1]) is left
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]


def test_norm_after_norm_and_identity(check):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.Identity(), layers.BNReLU(4)
    )
    folded, fell = check(model, 2, 3, 7, 5)
    assert fell == 16
    assert [entry.into for entry in folded.fold_report.norms] == [("0",), ("0",)]


def test_weights_that_two_convolutions_share(check):
    first, second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, bias=False)
    second.weight = first.weight
    check(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second), 2, 4, 7, 5)


def test_module_under_two_names(check, flow):
    norm = nn.BatchNorm2d(4)
    model = flow(lambda m, x: m.b(m.conv(x)), conv=nn.Conv2d(3, 4, 3), a=norm, b=norm)
    folded, fell = check(model, 2, 3, 7, 5)
    assert fell == 8
    assert type(folded.a) is type(folded.b) is nn.Identity


def test_module_in_a_list(check):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), layers.BNSwish(4)
            self.other, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.order = [self.conv, self.norm, self.other, self.last]

        def forward(self, x):
            for module in self.order:
                x = module(x)
            return x

    folded, fell = check(Listed(), 2, 3, 7, 5)
    assert fell == 16
    assert folded.order[3] is folded.last


def twice(m, x):
    return m.norm(m.conv(x)) + m.norm(m.other(x))


STAYS = {
    "norm called twice": (twice, "norm is called 2 times"),
    "convolution called twice": (
        lambda m, x: m.norm(m.conv(x)) + m.conv(x + 1), "conv is called 2 times",
    ),
    "other readers": (
        lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)), "the output of conv has other readers",
    ),
    "function between": (
        lambda m, x: m.norm(m.conv(x).relu()), "relu is no convolution or linear layer",
    ),
    "input": (
        lambda m, x: m.norm(x[:, [0, 1, 2, 0]]), "getitem is no convolution or linear layer",
    ),
    "weight read": (
        lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(),
        "a parameter of conv is used elsewhere too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_what_cannot_be_folded_stays(case, check, flow):
    function, reason = STAYS[case]
    modules = {"conv": nn.Conv2d(3, 4, 3), "other": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4)}
    folded, fell = check(flow(function, **modules), 2, 3, 7, 5)
    assert fell == 0
    assert {entry.reason for entry in folded.fold_report.norms} == {reason}


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: nn.utils.spectral_norm(conv),
        lambda conv: nn.utils.parametrizations.weight_norm(conv),
        lambda conv: conv.register_forward_hook(lambda m, x, y: y.relu()),
    ],
)
def test_hooks_and_parametrizations_stay(change, check):
    conv = nn.Conv2d(3, 4, 3)
    change(conv)
    folded, fell = check(nn.Sequential(conv, nn.BatchNorm2d(4)), 2, 3, 7, 5)
    assert fell == 0
    assert folded.fold_report.norms[0].reason


def test_batch_norm_without_moving_statistics_stays(check):
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    folded, fell = check(nn.Sequential(nn.Conv2d(3, 4, 3), norm), 2, 3, 7, 5)
    assert fell == 0
    assert folded.fold_report.norms[0].reason == "it has no moving statistics"


def test_linear_layer_along_the_width_stays(check):
    """Its channels are last, those of the norms second; 4 and 4 of them."""
    for norm in (nn.BatchNorm2d(4), layers.EvoNormS0(4, apply_act=False)):
        folded, fell = check(nn.Sequential(nn.Linear(6, 4), norm), 2, 4, 5, 6)
        assert fell == 0
        assert folded.fold_report.norms[0].reason == "its channels are not those of 0"


def test_linear_layer_of_sequences(draw):
    model = draw(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    x = torch.randn(2, 4, 6).double()
    assert model(x).shape == (2, 4, 4)
    with pytest.raises(ValueError, match=r"for \(N, C\); got \(2, 4, 4\)"):
        fold_for_inference(model)(x)
