"""EfficientNet-B0 (Tan and Le, arXiv 1905.11946, Table 1) for images of 32x32."""

from torch import nn

from evonorm_plugins.classification.models.blocks import (
    InvertedResidual,
    conv_norm,
    initialise,
    scaled,
)

# Expansion, kernel, channels, blocks, stride of the first one.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 1),  # stride 2 on ImageNet
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNet(nn.Module):
    """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``; features at an eighth of the size.

    ``norm`` stands for batch normalization and Swish; squeeze-excitation keeps its own Swish.
    """

    def __init__(self, num_classes, norm, *, width):
        super().__init__()
        channels = scaled(32, width)
        layers = [conv_norm(3, channels, 3, norm)]  # stride 2 on ImageNet
        for expand, kernel, outputs, blocks, stride in STAGES:
            for k in range(blocks):
                inputs, channels = channels, scaled(outputs, width)
                layers.append(
                    InvertedResidual(
                        inputs,
                        channels,
                        norm,
                        kernel=kernel,
                        stride=stride if k == 0 else 1,
                        expand=expand,
                        squeeze=max(1, inputs // 4),
                    )
                )
        last = scaled(1280, width)
        layers.append(conv_norm(channels, last, 1, norm))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def efficientnet_b0_cifar(num_classes, norm, width=0.5):
    """EfficientNet-B0 (Section 4.2): the first two convolutions with stride 2 have stride 1."""
    return EfficientNet(num_classes, norm, width=width)
