"""Residual blocks and attention of BigGAN-deep.

Source: Brock, Donahue, Simonyan (arXiv 1809.11096v2), Figure 16 and Appendix B; the attention is
that of Zhang et al. (arXiv 1805.08318).
"""

import torch
import torch.nn.functional as F
from torch import nn

from biggan.spectral import SNConv2d

BOTTLENECK = 4  # the inner convolutions have a quarter of the channels


class GeneratorBlock(nn.Module):
    """Four conditional norm-acts, each before a convolution: 1x1, 3x3 (enlarged), 3x3, 1x1.

    The skip connection keeps the first ``out_channels`` channels.

    Args:
        norm: ``norm(channels)`` makes a module called with ``(x, condition)``.
        upsample: whether height and width double.
    """

    def __init__(self, in_channels, out_channels, norm, *, upsample, eps):
        super().__init__()
        hidden = in_channels // BOTTLENECK
        self.out_channels, self.upsample = out_channels, upsample
        self.norm1, self.conv1 = norm(in_channels), SNConv2d(in_channels, hidden, 1, eps=eps)
        self.norm2, self.conv2 = norm(hidden), SNConv2d(hidden, hidden, 3, eps=eps)
        self.norm3, self.conv3 = norm(hidden), SNConv2d(hidden, hidden, 3, eps=eps)
        self.norm4, self.conv4 = norm(hidden), SNConv2d(hidden, out_channels, 1, eps=eps)

    def forward(self, x, condition):
        """``(N, in, H, W)``, ``(N, cond)`` to ``(N, out, H, W)`` or ``(N, out, 2H, 2W)``."""
        h = self.conv1(self.norm1(x, condition))
        h = self.norm2(h, condition)
        h = self.conv2.upsampled(h) if self.upsample else self.conv2(h)
        h = self.conv3(self.norm3(h, condition))
        h = self.conv4(self.norm4(h, condition))
        x = x[:, : self.out_channels]
        return h + (F.interpolate(x, scale_factor=2) if self.upsample else x)


class DiscriminatorBlock(nn.Module):
    """ReLU before each of four convolutions: 1x1, 3x3, 3x3, (pooling,) 1x1.

    The skip connection is pooled and a 1x1 convolution of it adds the channels that are missing.
    """

    def __init__(self, in_channels, out_channels, *, downsample, eps):
        super().__init__()
        hidden = out_channels // BOTTLENECK
        self.downsample = downsample
        self.conv1 = SNConv2d(in_channels, hidden, 1, eps=eps)
        self.conv2 = SNConv2d(hidden, hidden, 3, eps=eps)
        self.conv3 = SNConv2d(hidden, hidden, 3, eps=eps)
        self.conv4 = SNConv2d(hidden, out_channels, 1, eps=eps)
        missing = out_channels - in_channels
        self.skip = SNConv2d(in_channels, missing, 1, eps=eps) if missing else None

    def forward(self, x):
        """``(N, in, H, W)`` to ``(N, out, H, W)`` or ``(N, out, H/2, W/2)``."""
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h))
        h = F.relu(self.conv3(F.relu(h)))
        if self.downsample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv4(h)
        return h + (x if self.skip is None else torch.cat([x, self.skip(x)], 1))


class Attention(nn.Module):
    """Self-attention over positions; keys and values are pooled to a quarter of them."""

    def __init__(self, channels, *, eps):
        super().__init__()
        self.query = SNConv2d(channels, channels // 8, 1, bias=False, eps=eps)
        self.key = SNConv2d(channels, channels // 8, 1, bias=False, eps=eps)
        self.value = SNConv2d(channels, channels // 2, 1, bias=False, eps=eps)
        self.out = SNConv2d(channels // 2, channels, 1, bias=False, eps=eps)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        """``(N, C, H, W)`` to the same."""

        def rows(t):
            return t.flatten(2).transpose(1, 2)  # (N, positions, channels)

        query = rows(self.query(x))
        key, value = (rows(F.max_pool2d(conv(x), 2)) for conv in (self.key, self.value))
        # Channels of zeros change no product, and the kernels that keep no matrix of attention want
        # queries, keys and values of one length, and heads, here one.
        missing = value.shape[2] - query.shape[2]
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
        heads = (t[:, None] for t in (query, key, value))
        # Not scaled by the square root of the channels: those of the paper are not.
        h = F.scaled_dot_product_attention(*heads, scale=1.0)[:, 0]
        h = self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))
        return x + self.gain * h
