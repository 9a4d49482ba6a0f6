"""Pre-activation ResNet-50 and 101 (He et al., arXiv 1603.05027), the EvoNorm paper's ResNets.

As in the authors' code (tensorflow/tpu, models/official/resnet) the stride is on the 3x3
convolution, and a stage's first block projects what its first norm-activation gives. Modules and
parameters are named as timm's ``resnetv2_50``, ``resnetv2_101`` and ``resnetv2_50d``, whose
checkpoints with EvoNorm load.
"""

from torch import nn

from evonorm_plugins.classification.models.blocks import conv, initialise, scaled
from evonorm_plugins.registry import get_norm_act

# Blocks of the four stages, by depth.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Downsample(nn.Module):
    """The projection of a skip connection, after average pooling where ``avg`` (ResNet-D)."""

    def __init__(self, inputs, outputs, stride, *, avg):
        super().__init__()
        pooled = avg and stride > 1
        self.pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        self.pool = self.pool if pooled else nn.Identity()
        self.conv = conv(inputs, outputs, 1, 1 if pooled else stride)

    def forward(self, x):
        return self.conv(self.pool(x))


class PreActBottleneck(nn.Module):
    """Three times norm-activation and convolution; the skip connection is never activated."""

    def __init__(self, inputs, outputs, stride, norm, *, project, avg_down):
        super().__init__()
        inner = outputs // 4
        self.downsample = Downsample(inputs, outputs, stride, avg=avg_down) if project else None
        self.norm1 = get_norm_act(norm, inputs)
        self.conv1 = conv(inputs, inner, 1)
        self.norm2 = get_norm_act(norm, inner)
        self.conv2 = conv(inner, inner, 3, stride)
        self.norm3 = get_norm_act(norm, inner)
        self.conv3 = conv(inner, outputs, 1)

    def forward(self, x):
        y = self.norm1(x)
        skip = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.norm2(y))
        return self.conv3(self.norm3(y)) + skip


class Head(nn.Module):
    """Mean over space and a linear layer, which timm keeps as a 1x1 convolution."""

    def __init__(self, inputs, num_classes):
        super().__init__()
        self.fc = nn.Conv2d(inputs, num_classes, 1)

    def forward(self, x):
        return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)


class PreActResNet(nn.Module):
    """Pre-activation ResNet of bottleneck blocks.

    Args:
        depth: 50 or 101.
        width: factor of all channels.
        deep_stem: three 3x3 convolutions instead of one 7x7 (ResNet-D).
        avg_down: average pooling before the projection of a stage with stride (ResNet-D).
        strides: of the first convolution and of the four stages.
    """

    def __init__(
        self,
        num_classes,
        norm,
        *,
        depth=50,
        width=1.0,
        deep_stem=False,
        avg_down=False,
        strides=(2, 1, 2, 2, 2),
    ):
        super().__init__()
        channels = scaled(64, width)
        self.stem = _stem(channels, strides[0], norm, deep=deep_stem)
        stages = []
        for k, (blocks, stride) in enumerate(zip(BLOCKS[depth], strides[1:], strict=True)):
            inputs, channels = channels, scaled(256 * 2**k, width)
            stages.append(_stage(inputs, channels, blocks, stride, norm, avg_down))
        self.stages = nn.Sequential(*stages)
        self.norm = get_norm_act(norm, channels)
        self.head = Head(channels, num_classes)
        initialise(self)
        nn.init.normal_(self.head.fc.weight, 0, 0.01)

    def forward(self, x):
        return self.head(self.norm(self.stages(self.stem(x))))


class _Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x)


def _stage(inputs, outputs, blocks, stride, norm, avg_down):
    return _Stage(
        PreActBottleneck(
            inputs if k == 0 else outputs,
            outputs,
            stride if k == 0 else 1,
            norm,
            project=k == 0,
            avg_down=avg_down,
        )
        for k in range(blocks)
    )


def _stem(channels, stride, norm, *, deep):
    stem = nn.Sequential()
    if deep:
        half = channels // 2
        stem.conv1 = conv(3, half, 3, stride)
        stem.norm1 = get_norm_act(norm, half)
        stem.conv2 = conv(half, half, 3)
        stem.norm2 = get_norm_act(norm, half)
        stem.conv3 = conv(half, channels, 3)
    else:
        stem.conv = conv(3, channels, 7, stride)
    stem.pool = nn.MaxPool2d(3, 2, padding=1)
    return stem


def preact_resnet50(num_classes, norm, width=1.0):
    """The paper's ResNet-50 for ImageNet (Section 5.1); timm's ``resnetv2_50``."""
    return PreActResNet(num_classes, norm, width=width)


def preact_resnet101(num_classes, norm, width=1.0):
    """The paper's R-101 for ImageNet (Table 2); timm's ``resnetv2_101``."""
    return PreActResNet(num_classes, norm, depth=101, width=width)


def preact_resnet50d(num_classes, norm, width=1.0):
    """With the stem and the projections of ResNet-D; timm's ``resnetv2_50d``."""
    return PreActResNet(num_classes, norm, width=width, deep_stem=True, avg_down=True)


def resnet50_cifar(num_classes, norm, width=0.25):
    """ResNet-50 for images of 32x32 (Section 4.2): the first two convolutions with stride 2 have
    stride 1. The maximum pooling stays, so the last feature maps are 4x4."""
    return PreActResNet(num_classes, norm, width=width, strides=(1, 1, 1, 2, 2))
