"""MobileNetV2 (Sandler et al., arXiv 1801.04381, Table 2) for images of 32x32."""

from torch import nn

from evonorm_plugins.classification.models.blocks import (
    InvertedResidual,
    conv_norm,
    initialise,
    scaled,
)

# Expansion, channels, blocks, stride of the first one.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # stride 2 on ImageNet
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``; features at an eighth of the size."""

    def __init__(self, num_classes, norm, *, width):
        super().__init__()
        channels = scaled(32, width)
        layers = [conv_norm(3, channels, 3, norm)]  # stride 2 on ImageNet
        for expand, outputs, blocks, stride in STAGES:
            for k in range(blocks):
                inputs, channels = channels, scaled(outputs, width)
                options = {"stride": stride if k == 0 else 1, "expand": expand}
                layers.append(InvertedResidual(inputs, channels, norm, **options))
        # The last layer is not made narrower than 1280 (Section 6.1 there).
        last = scaled(1280, max(1.0, width))
        layers.append(conv_norm(channels, last, 1, norm))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenetv2_cifar(num_classes, norm, width=0.5):
    """MobileNetV2 (Section 4.2): the first two convolutions with stride 2 have stride 1."""
    return MobileNetV2(num_classes, norm, width=width)
