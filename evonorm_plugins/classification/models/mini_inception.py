"""Mini Inception: the small GoogLeNet for CIFAR-10 of Zhang, Bengio, Hardt, Recht, Vinyals,
"Understanding deep learning requires rethinking generalization" (arXiv 1611.03530), Appendix A,
Figure 3.
"""

import torch
from torch import nn
from torch.nn import functional as F

from evonorm_plugins.classification.models.blocks import conv_norm, initialise

# Filters of the 1x1 and 3x3 convolutions of an Inception block, or of the one of a downsampling.
STAGES = (
    *((32, 32), (32, 48), 80),
    *((112, 48), (96, 64), (80, 80), (48, 96), 96),
    *((176, 160), (176, 160)),
)


class Inception(nn.Module):
    """1x1 and 3x3 convolutions of the same input, side by side."""

    def __init__(self, in_channels, channels_1x1, channels_3x3, norm):
        super().__init__()
        self.conv1x1 = conv_norm(in_channels, channels_1x1, 1, norm)
        self.conv3x3 = conv_norm(in_channels, channels_3x3, 3, norm)
        self.out_channels = channels_1x1 + channels_3x3

    def forward(self, x):
        return torch.cat([self.conv1x1(x), self.conv3x3(x)], 1)


class Downsample(nn.Module):
    """A 3x3 convolution and a maximum over 3x3, both with stride 2, side by side."""

    def __init__(self, in_channels, channels, norm):
        super().__init__()
        self.conv = conv_norm(in_channels, channels, 3, norm, stride=2)
        self.out_channels = channels + in_channels

    def forward(self, x):
        return torch.cat([self.conv(x), F.max_pool2d(x, 3, stride=2, padding=1)], 1)


class MiniInception(nn.Module):
    """``(N, in_channels, H, W)`` images to ``(N, num_classes)`` logits.

    28x28 images, the paper's crops, become maps of 14x14 and 7x7; any size of at least 4x4 works,
    for the last maps are averaged whole.

    Args:
        num_classes: number of classes.
        norm: name of a registered norm-activation, options included.
        in_channels: channels of an image.
        dropout: share of the classifier's inputs that are left out in training; the paper has none.

    Raises:
        ValueError: ``norm`` is unknown, or an option of it makes no sense.
    """

    def __init__(self, num_classes=10, norm="BN-ReLU", in_channels=3, dropout=0.0):
        super().__init__()
        self.stem = conv_norm(in_channels, 96, 3, norm)
        blocks, channels = [], 96
        for stage in STAGES:
            if isinstance(stage, tuple):
                blocks.append(Inception(channels, *stage, norm))
            else:
                blocks.append(Downsample(channels, stage, norm))
            channels = blocks[-1].out_channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x):
        return self.classifier(self.dropout(self.blocks(self.stem(x)).mean((2, 3))))


def mini_inception(num_classes, norm, dropout=0.0):
    return MiniInception(num_classes, norm, dropout=dropout)
