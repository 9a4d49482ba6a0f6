"""Latents and classes that depend on a seed and a sample's number, not on how they are batched."""

import math

import torch

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.training.seeds import generator_of, mixed_seed

# Of a normal distribution, 0.8 % are of a magnitude below it.
_FEW_PASS = 0.01


def draw_latents(indices, seed, z_size, truncation=None):
    """Latents ``(len(indices), z_size)`` of the samples with these numbers.

    Args:
        truncation: numbers of magnitude above it are drawn again (arXiv 1809.11096, Section 3.1);
            None: none are. Below 0.01, where that would take hundreds of draws, the same
            distribution comes from the inverse of its cumulative one.

    Raises:
        ConfigError: a truncation that is not above 0.
    """
    if truncation is not None and not truncation > 0:
        raise ConfigError(f"truncation={truncation} must be above 0")
    if truncation is not None and truncation < _FEW_PASS:
        return _draw_within(indices, seed, z_size, truncation)
    rows = []
    for index in indices:
        generator = generator_of(seed, index)
        z = torch.randn(z_size, generator=generator)
        while truncation is not None and (outside := z.abs() > truncation).any():
            z[outside] = torch.randn(int(outside.sum()), generator=generator)
        rows.append(z)
    return torch.stack(rows) if rows else torch.zeros(0, z_size)


def _draw_within(indices, seed, z_size, bound):
    """Latents of the normal distribution within ``bound``, each of one uniform number."""
    shares = torch.zeros(len(indices), z_size, dtype=torch.double)
    for row, index in zip(shares, indices, strict=True):
        row.uniform_(-1, 1, generator=generator_of(seed, index))
    root = math.sqrt(2)
    z = root * torch.erfinv(shares * math.erf(bound / root))
    return z.clamp(-bound, bound).float()


def draw_classes(indices, seed, num_classes):
    """Classes ``(len(indices),)``, uniform, of the samples with these numbers."""
    return torch.tensor(
        [mixed_seed(seed, index, 1) % num_classes for index in indices], dtype=torch.long
    )
