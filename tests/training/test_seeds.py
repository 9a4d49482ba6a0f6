"""Random numbers that depend on integers alone, and torch's own, gone on with."""

import pytest
import torch

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.training.seeds import (
    check_seed,
    generator_of,
    mixed_seed,
    random_state,
    set_random_state,
)


def test_splitmix64():
    # The first outputs of Vigna's splitmix64.c from the states 0 and 1234567.
    assert mixed_seed(0) == 0xE220A8397B1DCDAF
    assert mixed_seed(1234567) == 6457827717110365317
    assert len({mixed_seed(a, b) for a in range(30) for b in range(30)}) == 900
    assert mixed_seed(-1) != mixed_seed(1)


def test_generators():
    first = torch.rand(3, generator=generator_of(1, 2))
    assert torch.equal(torch.rand(3, generator=generator_of(1, 2)), first)
    assert not torch.equal(torch.rand(3, generator=generator_of(2, 1)), first)


def test_seeds_have_a_range():
    check_seed(0)
    check_seed(2**63 - 1)
    for value in (-1, 2**63, 10**30):
        with pytest.raises(ConfigError, match=f"^--seed {value} must be from 0 to {2**63 - 1}$"):
            check_seed(value, "--seed ")


def test_torch_goes_on_where_it_was():
    cpu = torch.device("cpu")
    state = random_state(cpu)
    numbers = torch.rand(5)
    torch.rand(100)
    set_random_state(state, cpu)
    assert torch.equal(torch.rand(5), numbers)
