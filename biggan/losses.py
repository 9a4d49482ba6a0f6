"""Hinge losses and orthogonal regularisation.

Source: Brock, Donahue, Simonyan (arXiv 1809.11096), Appendix C and Section 3.1.
"""

import torch
import torch.nn.functional as F

from biggan.spectral import spectral_layers


def discriminator_loss(real, fake):
    """``mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))`` of scores ``(N,)``."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake):
    """``-mean D(fake)`` of scores ``(N,)``."""
    return -fake.mean()


def orthogonal_penalty(module):
    """Sum over layers of ``||W W^T * (1 - I)||_F^2``, W ``(O, I)``: rows made orthogonal.

    The embedding of classes, which is not spectrally normalized, is left out.
    """
    total = 0
    for _, layer in spectral_layers(module):
        w = layer.weight.flatten(1)
        # ||W W^T||_F = ||W^T W||_F, so the smaller product does, and its diagonal is known.
        gram = w @ w.t() if w.shape[0] <= w.shape[1] else w.t() @ w
        total = total + gram.square().sum() - w.square().sum(1).square().sum()
    return total


def accuracies(real, fake):
    """Shares of real images with a score above 0 and of fake ones below 0, ``(2,)``."""
    return torch.stack([(real > 0).float().mean(), (fake < 0).float().mean()])
