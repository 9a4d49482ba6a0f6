"""BigGAN-deep's channels by resolution.

Source: Brock, Donahue, Simonyan (arXiv 1809.11096v2), Tables 7 (128), 8 (256) and 9 (512). The
paper has no deep variant for 64 and 32: 64 follows its BigGAN-deep up to that size, 32 has the same
width everywhere, as usual for CIFAR-10.
"""

import itertools

# Multiples of ``channels`` at 4x4, 8x8, ... of the generator; one more than there are stages. The
# discriminator has them in reverse.
CHANNEL_MULTIPLIERS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}


def stages(model):
    """``(in_channels, out_channels, size)`` of every generator stage; ``size`` is that it ends at.

    Args:
        model: a :class:`biggan.config.Config`.
    """
    multipliers = model.channel_multipliers or CHANNEL_MULTIPLIERS[model.resolution]
    widths = [m * model.channels for m in multipliers]
    return [(a, b, 8 * 2**k) for k, (a, b) in enumerate(itertools.pairwise(widths))]
