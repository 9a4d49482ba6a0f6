"""The generator of BigGAN-deep, with any norm-activation layer of evonorm_plugins."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from biggan.architecture import stages
from biggan.blocks import Attention, GeneratorBlock
from biggan.spectral import SNConv2d, SNLinear, init_orthogonal
from evonorm_plugins import ConditionalNormAct, convert_cross_replica, get_norm_act
from evonorm_plugins.layers import moving_statistics_of


class Generator(nn.Module):
    """Images of given classes from latents.

    Args:
        config: a checked :class:`biggan.config.Config` with ``num_classes``.

    Every block is given the latent and the class embedding, concatenated (hence ``condition``).
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        eps, condition = config.spectral_eps, config.z_size + config.embedding_size
        plan = stages(config)
        first, last = plan[0][0], plan[-1][1]
        self.embedding = nn.Embedding(config.num_classes, config.embedding_size)
        self.linear = SNLinear(condition, first * 16, eps=eps)

        def norm(channels):
            layer = get_norm_act(config.norm, channels, eps=config.norm_eps)
            return ConditionalNormAct(layer, condition, projection=_projection(eps))

        self.blocks = nn.ModuleList()
        for in_channels, out_channels, size in plan:
            for _ in range(config.depth - 1):
                block = GeneratorBlock(in_channels, in_channels, norm, upsample=False, eps=eps)
                self.blocks.append(block)
            self.blocks.append(
                GeneratorBlock(in_channels, out_channels, norm, upsample=True, eps=eps)
            )
            if size in config.attention:
                self.blocks.append(Attention(out_channels, eps=eps))
        self.norm = get_norm_act(config.norm, last, eps=config.norm_eps)
        self.conv = SNConv2d(last, config.image_channels, 3, eps=eps)
        init_orthogonal(self)
        if config.cross_replica:
            convert_cross_replica(self)

    def forward(self, z, y):
        """Images ``(N, image_channels, resolution, resolution)`` in [-1, 1].

        Args:
            z: latents ``(N, z_size)``.
            y: classes ``(N,)``, integers, or embeddings ``(N, embedding_size)``.
        """
        condition = torch.cat([z, self.embed(y)], 1)
        x = self.linear(condition).view(len(z), -1, 4, 4)
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = self._apply_block(block, x, condition)
        # In float32: what follows is rounded to 256 values or given to the discriminator.
        return torch.tanh(self.conv(self.norm(x)).float())

    def embed(self, y):
        """Class embeddings ``(N, embedding_size)``; such are returned as they are.

        Raises:
            ValueError: a class that does not exist.
        """
        if y.is_floating_point():
            return y
        return self.embedding(y)

    def _apply_block(self, block, x, condition):
        arguments = (x,) if isinstance(block, Attention) else (x, condition)
        if not (self.config.activation_checkpointing and torch.is_grad_enabled()):
            return block(*arguments)

        def contexts():
            # The second forward pass must not count the batch a second time.
            return contextlib.nullcontext(), frozen_running_statistics(block)

        return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)


def _projection(eps):
    def projection(cond_features, channels):
        return SNLinear(cond_features, channels, bias=False, eps=eps)

    return projection


def running_statistics_layers(module):
    """The layers of ``module`` that keep moving statistics of batches."""
    return [m for m in module.modules() if moving_statistics_of(m)]


@contextlib.contextmanager
def frozen_running_statistics(module):
    """Forward passes in training mode leave moving statistics as they are."""
    layers = running_statistics_layers(module)
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
