"""The discriminator of BigGAN-deep."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from biggan.architecture import stages
from biggan.blocks import Attention, DiscriminatorBlock
from biggan.spectral import SNConv2d, SNEmbedding, SNLinear, init_orthogonal


class Discriminator(nn.Module):
    """How real an image of a class looks: the generator mirrored, without norms.

    Args:
        config: a checked :class:`biggan.config.Config` with ``num_classes``.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        eps = config.spectral_eps
        plan = [(b, a, size) for a, b, size in reversed(stages(config))]
        self.conv = SNConv2d(config.image_channels, plan[0][0], 3, eps=eps)
        self.blocks = nn.ModuleList()
        for in_channels, out_channels, size in plan:
            self.blocks.append(
                DiscriminatorBlock(in_channels, out_channels, downsample=True, eps=eps)
            )
            for _ in range(config.depth - 1):
                self.blocks.append(
                    DiscriminatorBlock(out_channels, out_channels, downsample=False, eps=eps)
                )
            # The size that this stage ends at is half of the one the generator's ends at.
            if size // 2 in config.attention:
                self.blocks.append(Attention(out_channels, eps=eps))
        features = plan[-1][1]
        self.linear = SNLinear(features, 1, eps=eps)
        self.embedding = SNEmbedding(config.num_classes, features, eps=eps)
        init_orthogonal(self)

    def forward(self, x, y):
        """Scores ``(N,)`` of images ``(N, image_channels, H, W)`` in [-1, 1], classes ``(N,)``."""
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv(x)
        for block in self.blocks:
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        h = F.relu(x).float().sum((2, 3))
        # Sums over positions and their projection are large numbers whose sign matters.
        with torch.autocast(x.device.type, enabled=False):
            return self.linear(h)[:, 0] + (self.embedding(y) * h).sum(1)
