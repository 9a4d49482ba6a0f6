"""Gamma and beta that go into the layers after an EvoNorm."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evonorm_plugins import fold_for_inference, get_norm_act, layers

AFFINE_LAST = ["EvoNormB0", "EvoNormB1", "EvoNormB2", "EvoNormS0", "EvoNormS1", "EvoNormS2"]
AFFINE_LAST += ["SyncEvoNormB0", "Random", "Random + rej", "RS + rej"]
GAMMA_AND_BETA, GAMMA, NOTHING = "gamma and beta", "gamma", ""


def entry_of(folded):
    (entry,) = folded.fold_report.norms
    return entry.folded, entry.into


@pytest.mark.parametrize("name", AFFINE_LAST)
def test_into_a_convolution(name, check):
    layer = get_norm_act(name, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 5, 3))
    folded, fell = check(model, 2, 3, 7, 9)
    assert fell == 16
    assert entry_of(folded) == (GAMMA_AND_BETA, ("2",))
    left = {"v"} if layer.v is not None else set()
    assert {key for key, _ in folded[1].named_parameters()} == left


def test_numbers_by_hand():
    """Gamma 3 and beta 5 before a weight of 2 and a bias of 1: 6 and 11; where beta stays, 5/3."""
    for padding, bias, beta in ((0, 11, 0), (1, 1, 5 / 3)):
        model = nn.Sequential(layers.EvoNormS1(1), nn.Conv2d(1, 1, 1, padding=padding)).eval()
        for tensor, value in zip(model.parameters(), (3, 5, 2, 1), strict=True):
            tensor.data.fill_(value)
        norm, conv = fold_for_inference(model)
        assert conv.weight.item() == 6
        assert conv.bias.item() == bias
        assert norm.weight.item() == 1
        assert norm.bias.item() == pytest.approx(beta)


# Layer after an EvoNorm of 8 channels; what goes into it; how many parameters go.
READERS = {
    "1x1": (nn.Conv2d(8, 5, 1), GAMMA_AND_BETA, 16),
    "new biases": (nn.Conv2d(8, 5, 1, bias=False), GAMMA_AND_BETA, 16 - 5),
    "as many biases as betas": (nn.Conv2d(8, 8, 1, bias=False), GAMMA_AND_BETA, 8),
    "more biases than betas": (nn.Conv2d(8, 9, 1, bias=False), GAMMA, 8),
    "padded": (nn.Conv2d(8, 5, 3, padding=1), GAMMA, 8),
    "same": (nn.Conv2d(8, 5, 3, padding="same"), GAMMA, 8),
    "same, 1x1": (nn.Conv2d(8, 5, 1, padding="same"), GAMMA_AND_BETA, 16),
    "valid": (nn.Conv2d(8, 5, 3, stride=2, padding="valid"), GAMMA_AND_BETA, 16),
    "circular": (nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular"), GAMMA_AND_BETA, 16),
    "reflect": (nn.Conv2d(8, 5, 3, padding=2, padding_mode="reflect"), GAMMA_AND_BETA, 16),
    "replicate": (nn.Conv2d(8, 5, 3, padding=1, padding_mode="replicate"), GAMMA_AND_BETA, 16),
    "grouped": (nn.Conv2d(8, 6, 3, groups=2), GAMMA_AND_BETA, 16),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8), GAMMA_AND_BETA, 16),
    "depthwise, padded": (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), GAMMA, 8),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2), GAMMA, 8),
    "transposed, grouped": (nn.ConvTranspose2d(8, 6, 3, groups=2), GAMMA, 8),
    "linear after pooling": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5)),
        GAMMA_AND_BETA, 16,
    ),
    "linear after flattening": (
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 7 * 9, 5)), GAMMA_AND_BETA, 16,
    ),
    "average": (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 5, 1)), GAMMA_AND_BETA, 16),
    "average with zeros": (
        nn.Sequential(nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(8, 5, 1)), GAMMA, 8,
    ),
    "average without zeros": (
        nn.Sequential(
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.Conv2d(8, 5, 1)
        ),
        GAMMA_AND_BETA, 16,
    ),
    "average by another divisor": (
        nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(8, 5, 1)), GAMMA, 8,
    ),
    "zeros around": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 5, 3)), GAMMA, 8),
    "linear along the width": (nn.Linear(9, 5), NOTHING, 0),
    "linear along a width of 8": (
        nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Linear(8, 8)), NOTHING, 0,
    ),
    "activation": (nn.Sequential(nn.ReLU(), nn.Conv2d(8, 5, 3)), NOTHING, 0),
    "other flattening": (nn.Sequential(nn.Flatten(2), nn.Linear(63, 5)), NOTHING, 0),
    "output": (nn.Identity(), NOTHING, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", READERS)
def test_every_reader(case, check):
    reader, what, fewer = READERS[case]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layers.EvoNormS0(8, groups=4), reader)
    folded, fell = check(model, 2, 3, 7, 9)
    assert folded.fold_report.norms[0].folded == what
    assert fell == fewer


# Functions of an EvoNorm of 8 channels, `n`, and layers.
WAYS = {
    "mean": (lambda m, n: m.fc(n.mean((2, 3))), GAMMA_AND_BETA),
    "mean, last dimensions": (lambda m, n: m.fc(torch.mean(n, dim=[-1, -2])), GAMMA_AND_BETA),
    "mean, kept": (lambda m, n: m.conv(n.mean((2, 3), keepdim=True)), GAMMA_AND_BETA),
    "mean of rows": (lambda m, n: m.other(n.mean(3, keepdim=True)), NOTHING),
    "view": (lambda m, n: (lambda p: m.fc(p.view(p.size(0), -1)))(m.pool(n)), GAMMA_AND_BETA),
    "reshape": (
        lambda m, n: (lambda p: m.fc(p.reshape(p.shape[0], -1)))(m.pool(n)), GAMMA_AND_BETA,
    ),
    "view of channels": (lambda m, n: m.fc(m.pool(n).view(-1, 8)), NOTHING),
    "functions": (
        lambda m, n: m.fc(F.dropout(torch.flatten(F.adaptive_avg_pool2d(n, 1), 1), training=False)),
        GAMMA_AND_BETA,
    ),
    "dropout": (lambda m, n: m.conv(F.dropout(n, 0.2, m.training)), GAMMA_AND_BETA),
    "functional average": (lambda m, n: m.conv(F.avg_pool2d(n, 3, 2)), GAMMA_AND_BETA),
    "functional average with zeros": (lambda m, n: m.conv(F.avg_pool2d(n, 3, padding=1)), GAMMA),
    "squeeze-excitation": (
        lambda m, n: m.conv(n * m.excite(m.squeeze(m.pool(n)).relu()).sigmoid()), GAMMA,
    ),
    "product with itself": (lambda m, n: m.conv(n * n), NOTHING),
    "product with its average": (lambda m, n: m.conv(n * m.pool(n)), NOTHING),
    "constant factor": (lambda m, n: m.conv(0.5 * n), GAMMA),
    "two readers": (lambda m, n: m.conv(n) + m.other(n), GAMMA_AND_BETA),
    "two readers, one padded": (lambda m, n: m.padded(n) + m.pool(m.conv(n)), GAMMA),
    "a reader and a sum": (lambda m, n: m.pool(n) + m.squeeze(m.pool(n)).sum(), NOTHING),
    "the shape alone": (lambda m, n: m.conv(n) * n.shape[1] / n.size(2), GAMMA_AND_BETA),
    "sum": (lambda m, n: m.conv(n + 1), NOTHING),
    "the same layer twice": (lambda m, n: m.conv(n) + m.conv(m.pool(n)), NOTHING),
    "two outputs": (lambda m, n: torch.cat([m.conv(n).flatten(1), n.flatten(1)], 1), NOTHING),
}  # fmt: skip


@pytest.mark.parametrize("case", WAYS)
def test_every_way(case, check, flow):
    function, what = WAYS[case]
    modules = {
        "norm": layers.EvoNormB0(8),
        "conv": nn.Conv2d(8, 5, 1),
        "other": nn.Conv2d(8, 5, 1),
        "padded": nn.Conv2d(8, 5, 3, padding=1),
        "fc": nn.Linear(8, 5),
        "pool": nn.AdaptiveAvgPool2d(1),
        "squeeze": nn.Conv2d(8, 3, 1),
        "excite": nn.Conv2d(3, 8, 1),
    }
    folded, fell = check(flow(lambda m, x: function(m, m.norm(x)), **modules), 2, 8, 7, 9)
    assert folded.fold_report.norms[0].folded == what
    assert fell == {GAMMA_AND_BETA: 16, GAMMA: 8, NOTHING: 0}[what]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(3)])
def test_maximum(pool, draw, check):
    def model():
        return nn.Sequential(layers.EvoNormS0(8), pool, nn.Conv2d(8, 5, 1))

    folded, fell = check(model(), 2, 8, 7, 9)
    assert (draw(model())[0].weight < 0).any()
    assert fell == 0
    assert "negative gamma" in folded.fold_report.norms[0].reason
    positive = draw(model())
    positive[0].weight.data.abs_()
    positive[0].weight.data[0] = 0
    x = torch.randn(2, 8, 7, 9).double()
    folded = fold_for_inference(positive)
    assert entry_of(folded) == (GAMMA_AND_BETA, ("2",))
    torch.testing.assert_close(folded(x), positive(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("gamma", "beta", "padding", "what"),
    [
        (0, 2, 0, GAMMA_AND_BETA),
        (0, 0, 1, GAMMA),
        (0, 2, 1, NOTHING),  # nothing can be 2 before a factor of 0
        (1e-3, 2, 1, GAMMA),
        (1e-9, 2, 1, NOTHING),
    ],
)
def test_small_gamma(gamma, beta, padding, what, draw):
    model = draw(nn.Sequential(layers.EvoNormS0(8), nn.Conv2d(8, 5, 3, padding=padding)))
    model[0].weight.data[3], model[0].bias.data[3] = gamma, beta
    x = torch.randn(2, 8, 7, 9).double()
    folded = fold_for_inference(model)
    assert folded.fold_report.norms[0].folded == what
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8), layers.EvoNormS0(8, apply_act=False), nn.SyncBatchNorm(8)]
)
def test_affine_transform_without_a_layer_before(norm, check):
    folded, fell = check(nn.Sequential(norm, nn.Conv2d(8, 5, 3)), 2, 8, 7, 9)
    assert type(folded[0]) is nn.Identity
    assert fell == 16
    folded, fell = check(nn.Sequential(norm, nn.Conv2d(8, 5, 3, padding=1)), 2, 8, 7, 9)
    assert fell == 0


SEQUENCES, VOLUMES, VECTORS = (2, 3, 16), (2, 3, 6, 8, 7), (5, 3)
# A model of 8 channels with one norm or none; the input; what goes into the layer after it.
OTHER_SHAPES = {
    "sequences": (
        nn.Sequential(nn.Conv1d(3, 8, 3), layers.EvoNormS0(8, groups=4), nn.Conv1d(8, 5, 3)),
        SEQUENCES, GAMMA_AND_BETA,
    ),
    "volumes": (
        nn.Sequential(nn.Conv3d(3, 8, 3), layers.EvoNormB0(8), nn.Conv3d(8, 5, 3, padding=1)),
        VOLUMES, GAMMA,
    ),
    "pool of sequences": (
        nn.Sequential(
            nn.Conv1d(3, 8, 3), layers.EvoNormS0(8, groups=4), nn.AvgPool1d(2),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5),
        ),
        SEQUENCES, GAMMA_AND_BETA,
    ),
    "pool of volumes": (
        nn.Sequential(
            nn.Conv3d(3, 8, 3), layers.EvoNormB0(8), nn.AvgPool3d(2, padding=1),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(1), nn.Linear(8, 5),
        ),
        VOLUMES, GAMMA,
    ),
    "flattened volumes": (
        nn.Sequential(
            nn.Conv3d(3, 8, 3), layers.EvoNormB0(8), nn.Flatten(1, 4), nn.Linear(8 * 120, 5)
        ),
        VOLUMES, GAMMA_AND_BETA,
    ),
    "volumes flattened but for the width": (
        nn.Sequential(nn.Conv3d(3, 8, (3, 3, 1)), layers.EvoNormB0(8), nn.Flatten(1, 3),
                      nn.AdaptiveAvgPool1d(8), nn.Linear(8, 5)),
        VOLUMES, NOTHING,
    ),
    "vectors": (
        nn.Sequential(nn.Linear(3, 8), layers.EvoNormS0(8, groups=2), nn.Linear(8, 5)),
        VECTORS, GAMMA_AND_BETA,
    ),
    "vectors that were images": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 7, 8),
                      layers.EvoNormS0(8, groups=2), nn.Dropout(), nn.Linear(8, 5)),
        (2, 3, 7, 9), GAMMA_AND_BETA,
    ),
    "sequences and a linear layer": (
        nn.Sequential(nn.Conv1d(3, 8, 3), layers.EvoNormS0(8, groups=2), nn.Linear(8, 5)),
        (2, 3, 10), NOTHING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_SHAPES)
def test_sequences_volumes_and_vectors(case, check):
    model, shape, what = OTHER_SHAPES[case]
    folded, fell = check(model, *shape)
    assert folded.fold_report.norms[0].folded == what
    assert fell == {GAMMA_AND_BETA: 16, GAMMA: 8, NOTHING: 0}[what]
    assert pickle.loads(pickle.dumps(folded))(torch.zeros(shape).double()).shape[0] == shape[0]


MEAN_OF_VOLUMES = {
    "all of space": (lambda n: n.mean((2, 3, 4)), GAMMA_AND_BETA),
    "all but the width": (lambda n: n.mean((2, 3)), NOTHING),
    "flattened, but for the width": (lambda n: n.mean((2, 3)).flatten(1, 1), NOTHING),
}


@pytest.mark.parametrize("case", MEAN_OF_VOLUMES)
def test_mean_of_volumes(case, check, flow):
    """8 channels and a width of 8, so that a linear layer fits both."""
    function, what = MEAN_OF_VOLUMES[case]
    modules = {"conv": nn.Conv3d(3, 8, 1), "norm": layers.EvoNormB0(8), "fc": nn.Linear(8, 5)}
    model = flow(lambda m, x: m.fc(function(m.norm(m.conv(x)))), **modules)
    folded, _ = check(model, 2, 3, 4, 5, 8)
    assert folded.fold_report.norms[0].folded == what


def test_what_a_graph_does_not_tell_is_checked_later(draw, flow):
    """A mean over two dimensions is that of an image, if it is one."""
    modules = {"norm": layers.EvoNormB0(8), "fc": nn.Linear(8, 5)}
    model = draw(flow(lambda m, x: m.fc(m.norm(x).mean((2, 3))), **modules))
    folded = fold_for_inference(model)
    assert folded.fold_report.norms[0].folded == GAMMA_AND_BETA
    images, volumes = torch.randn(2, 8, 5, 7).double(), torch.randn(2, 8, 4, 5, 8).double()
    torch.testing.assert_close(folded(images), model(images), rtol=1e-10, atol=1e-10)
    assert torch.fx.symbolic_trace(folded)(images).shape == (2, 5)
    assert model(volumes).shape == (2, 8, 5)
    with pytest.raises(ValueError, match=r"for 4 dimensions; got \(2, 8, 4, 5, 8\)"):
        folded(volumes)
    modules = {"norm": layers.EvoNormS0(5, apply_act=False), "fc": nn.Linear(8, 5)}
    model = flow(lambda m, x: m.norm(m.fc(x.mean((2, 3)))), **modules).eval()
    assert not fold_for_inference(model).fold_report.norms[0].folded
    vectors = draw(nn.Sequential(nn.Linear(3, 8), layers.EvoNormS0(8), nn.Linear(8, 5)))
    with pytest.raises(ValueError, match=r"for 2 dimensions; got \(2, 8, 8\)"):
        fold_for_inference(vectors)(torch.randn(2, 8, 3).double())


@pytest.mark.parametrize("name", ["FRN", "PixelNorm-ReLU"])
def test_norms_that_end_with_an_affine_transform_without_activation(name, check):
    norm = get_norm_act(name, 8, apply_act=False)
    _, fell = check(nn.Sequential(norm, nn.Conv2d(8, 5, 3)), 2, 8, 7, 9)
    assert fell == 16


@pytest.mark.parametrize("name", ["FRN", "PixelNorm-ReLU", "GN-ReLU", "GN-Swish", "LN-ReLU"])
def test_affine_transforms_before_an_activation_stay(name, check):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), get_norm_act(name, 8), nn.Conv2d(8, 5, 3))
    folded, fell = check(model, 2, 3, 7, 9)
    assert fell == 0
    assert "activation" in folded.fold_report.norms[0].reason
