"""Latents and classes that depend on a seed and a sample's number, not on how they are batched."""

import torch

_MASK = (1 << 64) - 1


def mixed_seed(*numbers):
    """A 64-bit seed of integers, by splitmix64 (Steele, Lea, Flood 2014)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def generator_of(*numbers):
    """A ``torch.Generator`` on the CPU, seeded by integers."""
    return torch.Generator().manual_seed(mixed_seed(*numbers))


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
