"""Latents and classes that depend on a seed and a sample's number, not on how they are batched."""

import torch

from evonorm_plugins.training.seeds import generator_of, mixed_seed


def draw_latents(indices, seed, z_size, truncation=None):
    """Latents ``(len(indices), z_size)`` of the samples with these numbers.

    Args:
        truncation: numbers of magnitude above it are drawn again (arXiv 1809.11096, Section 3.1);
            None: none are.

    Raises:
        ValueError: a truncation that is not above 0.
    """
    if truncation is not None and not truncation > 0:
        raise ValueError(f"truncation={truncation} must be above 0")
    rows = []
    for index in indices:
        generator = generator_of(seed, index)
        z = torch.randn(z_size, generator=generator)
        while truncation is not None and (outside := z.abs() > truncation).any():
            z[outside] = torch.randn(int(outside.sum()), generator=generator)
        rows.append(z)
    return torch.stack(rows) if rows else torch.zeros(0, z_size)


def draw_classes(indices, seed, num_classes):
    """Classes ``(len(indices),)``, uniform, of the samples with these numbers."""
    return torch.tensor(
        [mixed_seed(seed, index, 1) % num_classes for index in indices], dtype=torch.long
    )
