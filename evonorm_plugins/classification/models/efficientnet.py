"""EfficientNet-B0 (Tan and Le, arXiv 1905.11946, Table 1) for images of 32x32."""

from evonorm_plugins.classification.models.blocks import InvertedResidualNet, scaled

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


def efficientnet_b0_cifar(num_classes, norm, width=0.5):
    """EfficientNet-B0 (Section 4.2): the first two convolutions with stride 2 have stride 1.

    ``norm`` stands for batch normalization and Swish; squeeze-excitation keeps its own Swish.
    """
    last = scaled(1280, width)
    return InvertedResidualNet(num_classes, norm, STAGES, width=width, last=last, squeeze=True)
