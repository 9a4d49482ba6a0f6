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
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model
