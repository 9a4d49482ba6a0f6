"""torch's own random numbers, to be gone on with."""

import torch


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
