"""The small ResNets for CIFAR-10 (He et al., arXiv 1512.03385, Section 4.2), pre-activation
(arXiv 1603.05027)."""

from torch import nn

from evonorm_plugins.classification.models.blocks import conv, initialise, scaled
from evonorm_plugins.registry import get_norm_act


class PreActBasic(nn.Module):
    """Twice norm-activation and 3x3 convolution; the skip connection is never activated.

    The skip connection is a 1x1 convolution of the first norm-activation where the shape changes.
    """

    def __init__(self, inputs, outputs, stride, norm):
        super().__init__()
        project = stride != 1 or inputs != outputs
        self.downsample = conv(inputs, outputs, 1, stride) if project else None
        self.norm1 = get_norm_act(norm, inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.norm2 = get_norm_act(norm, outputs)
        self.conv2 = conv(outputs, outputs, 3)

    def forward(self, x):
        y = self.norm1(x)
        skip = x if self.downsample is None else self.downsample(y)
        return self.conv2(self.norm2(self.conv1(y))) + skip


class CifarResNet(nn.Module):
    """Images ``(N, 3, H, W)`` to logits: a 3x3 convolution and three stages, ``6 * blocks + 2``
    layers deep; the feature maps of the last stage are a quarter as high and wide.

    Args:
        blocks: of each stage.
        width: factor of the 16, 32 and 64 channels.
    """

    def __init__(self, num_classes, norm, *, blocks, width):
        super().__init__()
        channels = scaled(16, width)
        self.stem = conv(3, channels, 3)
        layers = []
        for stage in range(3):
            for k in range(blocks):
                inputs, channels = channels, scaled(16 * 2**stage, width)
                layers.append(PreActBasic(inputs, channels, 2 if stage and k == 0 else 1, norm))
        self.blocks = nn.Sequential(*layers)
        self.norm = get_norm_act(norm, channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x):
        return self.fc(self.norm(self.blocks(self.stem(x))).mean((2, 3)))


def resnet8_cifar(num_classes, norm, width=1.0):
    """One block a stage: the cheapest of them, which learns within a hundred steps."""
    return CifarResNet(num_classes, norm, blocks=1, width=width)


def resnet20_cifar(num_classes, norm, width=1.0):
    """Three blocks a stage."""
    return CifarResNet(num_classes, norm, blocks=3, width=width)
