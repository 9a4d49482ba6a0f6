"""Whole networks with every norm, and the numbers of parameters counted by hand."""

import copy
import pickle

import pytest
import torch
from torch import nn

import evonorm_plugins
from evonorm_plugins import fold_for_inference, get_norm_act, layers


def inverted_residual(norm, inputs, outputs, stride):
    hidden = 6 * inputs
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False),
        get_norm_act(norm, hidden),
        nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
        get_norm_act(norm, hidden),
        nn.Conv2d(hidden, outputs, 1, bias=False),
        get_norm_act(norm, outputs, apply_act=False),
    )


class MobileNet(nn.Module):
    """As MobileNetV2."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            get_norm_act(norm, 8),
            inverted_residual(norm, 8, 12, 2),
        )
        self.block = inverted_residual(norm, 12, 12, 1)
        self.head = nn.Sequential(
            nn.Conv2d(12, 32, 1, bias=False),
            get_norm_act(norm, 32),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, 10),
        )

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.block(x))


class ResNet(nn.Module):
    """As ResNet: a block with a projection."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), get_norm_act(norm, 8))
        self.block = nn.Sequential(
            nn.Conv2d(8, 6, 1, bias=False),
            get_norm_act(norm, 6),
            nn.Conv2d(6, 6, 3, 2, 1, bias=False),
            get_norm_act(norm, 6),
            nn.Conv2d(6, 24, 1, bias=False),
            get_norm_act(norm, 24, apply_act=False),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(8, 24, 1, 2, bias=False), get_norm_act(norm, 24, apply_act=False)
        )
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.act(self.block(x) + self.shortcut(x)).mean((2, 3)))


class DenseNet(nn.Module):
    """As DenseNet: norms before convolutions, and concatenation."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            get_norm_act(norm, 8),
            nn.Conv2d(8, 16, 1, bias=False),
            get_norm_act(norm, 16),
            nn.Conv2d(16, 4, 3, padding=1, bias=False),
        )
        self.transition = nn.Sequential(
            get_norm_act(norm, 12), nn.Conv2d(12, 6, 1, bias=False), nn.AvgPool2d(2)
        )
        self.norm = get_norm_act(norm, 6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.transition(torch.cat([x, self.layer(x)], 1))
        return self.fc(nn.functional.adaptive_avg_pool2d(self.norm(x), 1).flatten(1))


BATCH = ("BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish")
NO_AFFINE_LAST = ("GN-ReLU", "GN-Swish-1", "GN-Swish", "LN-ReLU")
ONLY_WITHOUT_ACTIVATION = ("FRN", "PixelNorm-ReLU")
# How many parameters go. Of C channels, a norm before a convolution without bias: C; gamma: C;
# gamma and beta: 2 C, less as many as there are new biases.
FEWER = {
    MobileNet: {
        # All norms.
        BATCH: 8 + (48 + 48 + 12) + (72 + 72 + 12) + 32,
        # To 48 biases gamma alone; depthwise gamma alone; into the projection, which has got
        # biases by then, both; the norm of the projection; into the classifier both.
        "others": 8 + (48 + 2 * 48 + 12) + (72 + 2 * 72 + 12) + 2 * 32,
        # The first is read by a sum, the second gives its output to one.
        ONLY_WITHOUT_ACTIVATION: 0,
    },
    ResNet: {
        BATCH: 8 + (6 + 6 + 24) + 24,
        # Into two convolutions, of which one has got biases, the other has 6 new ones; before the
        # padding gamma alone; before biases both; and the norms before the sum.
        "others": (2 * 8 - 6) + (6 + 2 * 6 + 24) + 24,
        ONLY_WITHOUT_ACTIVATION: 0,
    },
    DenseNet: {
        # That between the convolutions alone.
        BATCH: 16,
        # To 16 biases and before the padding gamma alone; both, with 6 new biases; the classifier.
        "others": 8 + 16 + (2 * 12 - 6) + 2 * 6,
        ONLY_WITHOUT_ACTIVATION: 0,
    },
}


def fewer(network, name):
    if name in NO_AFFINE_LAST:
        return 0
    counts = FEWER[network]
    kind = next((names for names in counts if name in names and names != "others"), "others")
    return counts[kind]


@pytest.mark.parametrize("name", evonorm_plugins.list_norm_acts())
@pytest.mark.parametrize("network", FEWER)
def test_every_norm(network, name, check):
    folded, fell = check(network(name), 3, 3, 17, 19)
    assert fell == fewer(network, name)
    norms = sum(isinstance(m, layers.NormAct) for m in network(name).modules())
    assert len(folded.fold_report.norms) == norms


@pytest.mark.parametrize("name", ["BN-ReLU", "EvoNormB0", "EvoNormS0"])
@pytest.mark.parametrize("network", FEWER)
def test_float32_channels_last(network, name, draw):
    model = draw(network(name)).float().to(memory_format=torch.channels_last)
    x = torch.randn(3, 3, 17, 19).to(memory_format=torch.channels_last)
    folded = fold_for_inference(model)
    with torch.no_grad():
        found, expected = folded(x), model(x)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            assert module.weight.dtype == torch.float32


@pytest.mark.parametrize("network", FEWER)
def test_float32_and_fused_kernels(network, draw):
    """Beside float64, the error is no larger than that of the model as it was."""
    model = draw(network("EvoNormB0"))
    x = torch.randn(3, 3, 16, 16).double()
    with torch.no_grad():
        exact = model(x)
        model = model.float()
        before = (model(x.float()) - exact).abs().max()
        after = (fold_for_inference(model)(x.float()) - exact).abs().max()
    assert after < 10 * before


def test_folded_model_is_a_model_like_others(draw):
    model = draw(MobileNet("EvoNormB0"))
    folded = fold_for_inference(model)
    x = torch.randn(2, 3, 17, 19).double()
    expected = folded(x)
    assert torch.equal(copy.deepcopy(folded)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x), expected)
    assert folded.to(torch.float32).to(torch.float64)(x).shape == (2, 10)
    # A state goes into a model folded in the same way.
    other = fold_for_inference(draw(MobileNet("EvoNormB0")))
    other.load_state_dict(fold_for_inference(model).state_dict())
    torch.testing.assert_close(other(x), expected, rtol=1e-12, atol=1e-12)
    again = fold_for_inference(folded)
    torch.testing.assert_close(again(x), folded(x), rtol=1e-12, atol=1e-12)
    exported = torch.export.export(other, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-12, atol=1e-12)


def test_report_as_text():
    model = MobileNet("EvoNormB0").eval()
    lines = str(fold_for_inference(model).fold_report).splitlines()
    assert lines[0] == (
        "stem.1 (EvoNormB0): gamma into stem.2.0; beta stays, for "
        "48 biases would take the place of 8 betas"
    )
    assert lines[2] == "stem.2.3 (EvoNormB0): gamma and beta into stem.2.4"
    assert lines[3] == "stem.2.5 (EvoNormB0): norm into stem.2.4"
    before = sum(p.numel() for p in model.parameters())
    assert lines[-1] == f"{before:,} parameters before, {before - 456:,} after"


def still(model):
    """``model`` in eval mode and float64, with moving statistics that are not its first ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


# Number of norms, and of those that stay, for what comes before them has other readers or is no
# convolution.
TORCHVISION = {
    "resnet18": (20, 0),
    "mobilenet_v2": (52, 0),
    "mobilenet_v3_small": (34, 0),
    "efficientnet_b0": (49, 0),
    "shufflenet_v2_x0_5": (56, 0),
    "googlenet": (57, 0),
    # 58 layers of two norms, of which the second goes; the first convolution's goes too. Norms of
    # blocks and transitions stay, and the last.
    "densenet121": (121, 58 + 3 + 1),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    models = pytest.importorskip("torchvision").models
    options = {"init_weights": False} if name == "googlenet" else {}
    model = still(getattr(models, name)(num_classes=10, **options))
    folded = fold_for_inference(model)
    x = torch.randn(1, 3, 49, 49).double()
    with torch.no_grad():
        found, expected = folded(x), model(x)
    assert expected.std() > 1e-6 * expected.abs().mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    norms = folded.fold_report.norms
    assert (len(norms), sum(not norm.folded for norm in norms)) == TORCHVISION[name]


@pytest.mark.parametrize("name", ["mobilenetv2_050", "efficientnet_b0", "resnet18", "regnetx_002"])
def test_timm(name):
    timm = pytest.importorskip("timm")
    model = still(timm.create_model(name, num_classes=10))
    folded = fold_for_inference(model)
    x = torch.randn(1, 3, 49, 49).double()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-10)
    assert all(norm.folded for norm in folded.fold_report.norms)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
