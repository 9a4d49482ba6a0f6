"""Random numbers that depend on integers alone: a seed, a step, a rank."""

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
