"""Small modules that hold norms and activations in the ways that models do."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(cin=3, cout=4):
    return nn.Conv2d(cin, cout, 3, padding=1, bias=False)


class Forward(nn.Module):
    """A module of given children that computes ``function(self, x)``."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.function(self, x)


class Residual(nn.Module):
    """One ReLU for three places, as in torchvision's ResNets; the last follows an addition."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, channels), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = conv(channels, channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x
        return self.relu(out)


class Residual1d(nn.Module):
    """The same for sequences, two convolutions deep, with a shortcut of its own."""

    def __init__(self, cin, cout):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm1d(cout)
        self.conv2, self.bn2 = nn.Conv1d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm1d(cout)
        self.shortcut = nn.Sequential(nn.Conv1d(cin, cout, 1, 2), nn.BatchNorm1d(cout))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet1d():
    """A ResNet of sequences: 3 norms with an activation, 4 without, 2 activations that stay."""
    return nn.Sequential(
        *(nn.Conv1d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(3, 2)),
        *(Residual1d(8, 8), Residual1d(8, 16)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


def mlp():
    """Two hidden layers, each with a norm and an activation."""
    return nn.Sequential(
        *(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()),
        *(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.ReLU()),
        nn.Linear(16, 3),
    )


class Functional(nn.Module):
    """Convolution, norm and a ReLU that is no module, as in GoogLeNet."""

    def __init__(self, cin=3, cout=4):
        super().__init__()
        self.conv, self.bn = conv(cin, cout), nn.BatchNorm2d(cout)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class ByMode(nn.Module):
    """Computes one thing in training, another in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.scale = conv(), nn.BatchNorm2d(4), 2.0

    def forward(self, x):
        y = self.bn(self.conv(x))
        if self.training:
            y = F.dropout(F.relu(y), 0.5, self.training)
            return y * self.scale
        return torch.relu(y)


class Untraceable(nn.Module):
    """Its control flow depends on values."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        for child in self.children():
            if x.sum() > -1e9:
                x = child(x)
        return x


def randomize(model, seed=0):
    """Give every parameter and buffer of norms values of their own."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model
