"""What several architectures are made of."""

import math

from torch import nn

from evonorm_plugins.registry import get_norm_act


def conv(inputs, outputs, kernel, stride=1, groups=1):
    """A convolution without bias that keeps the size, divided by the stride."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def conv_norm(inputs, outputs, kernel, norm, *, stride=1, groups=1, apply_act=True):
    """A convolution and a norm-activation layer."""
    return nn.Sequential(
        conv(inputs, outputs, kernel, stride, groups),
        get_norm_act(norm, outputs, apply_act=apply_act),
    )


def scaled(channels, width, multiple=8):
    """``channels * width``, rounded to a multiple, not below 0.9 of itself (arXiv 1801.04381).

    Raises:
        ValueError: a width that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width={width} must be above 0")
    exact = channels * width
    rounded = max(multiple, int(exact + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * exact else rounded


class SqueezeExcitation(nn.Module):
    """Channels scaled by what their means say (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels, squeezed):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        scale = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * scale.sigmoid()


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection without activation (arXiv 1801.04381).

    Args:
        expand: factor of the channels within; 1 leaves the expansion out.
        squeeze: channels within the squeeze-excitation; 0 leaves it out.
    """

    def __init__(self, inputs, outputs, norm, *, kernel=3, stride=1, expand=6, squeeze=0):
        super().__init__()
        inner = inputs * expand
        layers = []
        if expand != 1:
            layers.append(conv_norm(inputs, inner, 1, norm))
        layers.append(conv_norm(inner, inner, kernel, norm, stride=stride, groups=inner))
        if squeeze:
            layers.append(SqueezeExcitation(inner, squeeze))
        layers.append(conv_norm(inner, outputs, 1, norm, apply_act=False))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.skip else y


class InvertedResidualNet(nn.Module):
    """Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``: blocks between two convolutions.

    Args:
        stages: expansion, kernel, channels, blocks and stride of the first one, for each.
        width: factor of all channels but the last ones.
        last: channels of the last convolution.
        squeeze: whether blocks have squeeze-excitation, to a quarter of their input's channels.
    """

    def __init__(self, num_classes, norm, stages, *, width, last, squeeze=False):
        super().__init__()
        channels = scaled(32, width)
        layers = [conv_norm(3, channels, 3, norm)]  # stride 2 on ImageNet
        for expand, kernel, outputs, blocks, stride in stages:
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
                        squeeze=max(1, inputs // 4) if squeeze else 0,
                    )
                )
        layers.append(conv_norm(channels, last, 1, norm))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def initialise(model):
    """Convolutions by He's rule over their outputs, linear layers with a deviation of 0.01."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
