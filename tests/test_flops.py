"""Multiply-adds and element-wise work, against numbers counted by hand."""

import pytest
import torch
from torch import nn

from evonorm_plugins import count_flops, fold_for_inference, get_norm_act, list_norm_acts

X = torch.zeros(2, 4, 8, 10)
E, C, NC = X.numel(), 4, 2 * 4  # elements, channels, channels of all images

# Elements that each operation writes or, where it reduces, reads.
BY_HAND = {
    # variance, +eps, 1/root | v*x, sigmoid, x*, *1/root | gamma * + beta
    "EvoNormS0": E + NC + NC + 4 * E + E,
    # instance variance, +eps, root; the same +eps, root of the moving one | v*x, +, max, / | affine
    "EvoNormB0": E + NC + NC + C + C + 4 * E + E,
    # x*sigmoid(x) is one operation
    "EvoNormS1": E + NC + NC + 2 * E + E,
    "BN-ReLU": 2 * E + E,
    "GN-ReLU": 5 * E + E,
    "GN-Swish": 5 * E + 3 * E,
    # tanh, max, tanh | affine
    "Random + rej": 3 * E + E,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_norms_by_hand(name):
    found = count_flops(get_norm_act(name, 4), X)
    assert found == (0, BY_HAND[name], ())
    assert found.total == BY_HAND[name]


@pytest.mark.parametrize("name", list_norm_acts())
def test_every_operation_of_every_layer_is_known(name):
    found = count_flops(get_norm_act(name, 4), X)
    assert found.elementwise >= 3 * E
    assert found.unknown == ()


# Written by each layer: numbers for two images of 4 x 8 x 10.
LAYERS = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1, bias=False), 2 * 6 * 80 * 4 * 9, 0),
    "bias": (nn.Conv2d(4, 6, 3, padding=1), 2 * 6 * 80 * 4 * 9, 0),
    "depthwise": (nn.Conv2d(4, 4, 3, 2, 1, groups=4), 2 * 4 * 20 * 9, 0),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, 2), 2 * 80 * 4 * 6 * 4, 0),
    "linear": (nn.Linear(10, 7), 2 * 4 * 8 * 10 * 7, 0),
    "relu": (nn.ReLU(inplace=True), 0, E),
    "relu6": (nn.ReLU6(), 0, E),
    "hardswish": (nn.Hardswish(), 0, E),
    "silu": (nn.SiLU(), 0, E),
    "batch normalization": (nn.BatchNorm2d(4), 0, 2 * E),
    "layer normalization": (nn.LayerNorm(10), 0, 5 * E),
    "average": (nn.AvgPool2d(2), 0, E),
    "maximum": (nn.MaxPool2d(3, 2, 1), 0, 2 * 4 * 20 * 9),
    "global average": (nn.AdaptiveAvgPool2d(1), 0, E),
    "flattening": (nn.Flatten(), 0, 0),
    "dropout": (nn.Dropout(), 0, 0),
}


# The same for a sequence of 4 x 80 and a volume of 4 x 6 x 8 x 10, one of each.
OTHER_LAYERS = {
    "sequence, convolution": (nn.Conv1d(4, 6, 3, padding=1), 80 * 6 * 4 * 3, 0),
    "sequence, average": (nn.AvgPool1d(2), 0, 320),
    "sequence, maximum": (nn.MaxPool1d(3, 2, 1), 0, 4 * 40 * 3),
    "sequence, global average": (nn.AdaptiveAvgPool1d(1), 0, 320),
    "sequence, batch normalization": (nn.BatchNorm1d(4), 0, 640),
    "volume, convolution": (nn.Conv3d(4, 6, 3, padding=1), 480 * 6 * 4 * 27, 0),
    "volume, average": (nn.AvgPool3d(2), 0, 1920),
    "volume, maximum": (nn.MaxPool3d(3, 2, 1), 0, 4 * 3 * 4 * 5 * 27),
    "volume, global average": (nn.AdaptiveAvgPool3d(1), 0, 1920),
    "volume, some average": (nn.AdaptiveAvgPool3d(2), 0, 1920),
}


@pytest.mark.parametrize("case", OTHER_LAYERS)
def test_layers_of_sequences_and_volumes_by_hand(case):
    layer, matrix, elementwise = OTHER_LAYERS[case]
    x = torch.zeros(1, 4, 80) if case.startswith("sequence") else torch.zeros(1, 4, 6, 8, 10)
    assert count_flops(layer, x) == (matrix, elementwise, ())


@pytest.mark.parametrize("name", list_norm_acts())
def test_norms_cost_the_same_whatever_the_dimensions(name):
    expected = count_flops(get_norm_act(name, 4), X)
    for shape in ((2, 4, 80), (2, 4, 2, 4, 10)):
        assert count_flops(get_norm_act(name, 4), torch.zeros(shape)) == expected
    assert count_flops(get_norm_act(name, 4), torch.zeros(2, 4)).unknown == ()


@pytest.mark.parametrize("case", LAYERS)
def test_layers_by_hand(case):
    layer, matrix, elementwise = LAYERS[case]
    assert count_flops(layer, X) == (matrix, elementwise, ())


def test_unknown_operations_are_named():
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort().values

    assert count_flops(Sorted(), X) == (0, 0, ("sort",))


def test_model_is_left_as_it_was():
    layer = get_norm_act("EvoNormB0", 4, impl="cpu")
    count_flops(layer, X + 3)
    assert layer.training
    assert layer.impl == "cpu"
    assert layer.weight.device.type == "cpu"
    assert torch.equal(layer.running_var, torch.ones(4))
    assert not layer._forward_hooks


def test_folded_models():
    """Folded batch normalization and folded gammas with betas cost nothing, a beta alone does."""

    def count(name, padding):
        layers = nn.Conv2d(4, 4, 1), get_norm_act(name, 4), nn.Conv2d(4, 3, 3, padding=padding)
        model = nn.Sequential(*layers).eval()
        before, after = count_flops(model, X), count_flops(fold_for_inference(model), X)
        assert before.matrix == after.matrix
        return before.elementwise - after.elementwise

    assert count("BN-ReLU", 1) == 2 * E
    assert count("EvoNormB0", 0) == E
    assert count("EvoNormB0", 1) == 0
    # Two folded layers; between them one that is not.
    model = nn.Sequential(
        *(get_norm_act("EvoNormS0", 4), nn.Conv2d(4, 4, 1)),
        *(get_norm_act("EvoNormS0", 4), nn.ReLU(), get_norm_act("EvoNormS0", 4)),
        *(nn.Conv2d(4, 4, 1),),
    ).eval()
    before, after = count_flops(model, X), count_flops(fold_for_inference(model), X)
    assert before.elementwise - after.elementwise == 2 * E
