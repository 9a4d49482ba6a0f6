"""Mini Inception: sizes, parameters and gradients."""

import pytest
import torch
from torch import nn

from evonorm_plugins.classification.models.mini_inception import MiniInception

# Filters, taps and input channels of every convolution, from Figure 3 of arXiv 1611.03530.
CONVOLUTIONS = [
    (96, 9, 3),
    *((32, 1, 96), (32, 9, 96)),
    *((32, 1, 64), (48, 9, 64)),
    (80, 9, 80),
    *((112, 1, 160), (48, 9, 160)),
    *((96, 1, 160), (64, 9, 160)),
    *((80, 1, 160), (80, 9, 160)),
    *((48, 1, 160), (96, 9, 160)),
    (96, 9, 144),
    *((176, 1, 240), (160, 9, 240)),
    *((176, 1, 336), (160, 9, 336)),
]
WEIGHTS = 1_644_320 + 336 * 10 + 10  # convolutions, classifier
CHANNELS = 1_712


def test_the_figures_numbers_add_up():
    assert sum(filters * taps * inputs for filters, taps, inputs in CONVOLUTIONS) == 1_644_320
    assert sum(filters for filters, _, _ in CONVOLUTIONS) == CHANNELS
    # Table 1 of the paper; its batch norm has an offset and no scale.
    assert WEIGHTS + CHANNELS == 1_649_402


@pytest.mark.parametrize(
    ("norm", "of_a_channel", "total"),
    [
        ("BN-ReLU", 2, 1_651_114),  # gamma, beta
        ("EvoNormS0(groups=8)", 3, 1_652_826),  # gamma, beta, v
        ("EvoNormB0", 3, 1_652_826),
    ],
)
def test_parameters(norm, of_a_channel, total):
    model = MiniInception(norm=norm)
    assert total == WEIGHTS + of_a_channel * CHANNELS
    assert sum(p.numel() for p in model.parameters()) == total


@pytest.mark.parametrize(("size", "after"), [(28, (14, 7)), (32, (16, 8)), (4, (2, 1))])
def test_sizes(size, after):
    model = MiniInception(norm="EvoNormS0")
    x = model.stem(torch.randn(1, 3, size, size))
    sizes = []
    for block in model.blocks:
        x = block(x)
        sizes.append(x.shape)
    assert [s[1] for s in sizes] == [64, 80, 160, 160, 160, 160, 144, 240, 336, 336]
    assert [s[2] for s in sizes] == [size] * 2 + [after[0]] * 5 + [after[1]] * 3


@pytest.mark.parametrize("norm", ["BN-ReLU", "EvoNormB0", "EvoNormS0(groups=32)"])
def test_every_parameter_learns(norm):
    model = MiniInception(num_classes=7, norm=norm, in_channels=1)
    y = model(torch.randn(2, 1, 12, 12))
    assert y.shape == (2, 7)
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 and p.grad.isfinite().all() for p in model.parameters())


def test_options_of_the_norm_reach_every_layer():
    model = MiniInception(norm="EvoNormS0(groups=12)")
    groups = [m.groups for m in model.modules() if hasattr(m, "groups") and hasattr(m, "v")]
    assert groups == [12] * 19


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    "norm", ["BN-ReLU", "EvoNormB0", *(f"EvoNormS0(groups={g})" for g in (4, 32))]
)
def test_the_highest_rate_of_the_study_stays_finite(norm, optimizer):
    torch.manual_seed(0)
    model = MiniInception(norm=norm)
    if optimizer == "adam":
        stepper = torch.optim.Adam(model.parameters(), 1e-2)
    else:
        stepper = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    x, y = torch.rand(8, 3, 12, 12), torch.arange(8)
    for _ in range(10):
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        assert loss.isfinite()
        stepper.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_dropout():
    torch.manual_seed(0)
    model = MiniInception(norm="BN-ReLU", dropout=0.5)
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert model.state_dict().keys() == MiniInception(norm="BN-ReLU").state_dict().keys()


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match="EvoNormS9"):
        MiniInception(norm="EvoNormS9")
