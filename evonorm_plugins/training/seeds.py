"""Random numbers that depend on integers alone: a seed, a step, a rank; and torch's own, kept."""

import torch

from evonorm_plugins.errors import ConfigError

_MASK = (1 << 64) - 1
SEEDS = 1 << 63  # a seed is an integer from 0 to below this


def check_seed(value, name="seed="):
    """Raise :class:`ConfigError` where an integer is no seed: another one would be taken for it."""
    if not 0 <= value < SEEDS:
        raise ConfigError(f"{name}{value} must be from 0 to {SEEDS - 1}")


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


def random_state(device):
    """torch's random states as one tensor of bytes: the CPU's, then the GPU's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state, device):
    """Go on from what :func:`random_state` gave."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:], device)
