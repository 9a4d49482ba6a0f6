"""MobileNetV2 (Sandler et al., arXiv 1801.04381, Table 2) for images of 32x32."""

from evonorm_plugins.classification.models.blocks import InvertedResidualNet, scaled

# Expansion, kernel, channels, blocks, stride of the first one.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 1),  # stride 2 on ImageNet
    (6, 3, 32, 3, 2),
    (6, 3, 64, 4, 2),
    (6, 3, 96, 3, 1),
    (6, 3, 160, 3, 2),
    (6, 3, 320, 1, 1),
)


def mobilenetv2_cifar(num_classes, norm, width=0.5):
    """MobileNetV2 (Section 4.2): the first two convolutions with stride 2 have stride 1."""
    # The last layer is not made narrower than 1280 (Section 6.1 there).
    last = scaled(1280, max(1.0, width))
    return InvertedResidualNet(num_classes, norm, STAGES, width=width, last=last)
