"""What fits into memory, found out without taking any."""

import pytest
import torch

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.training import memory


def test_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 2**30)
    memory.check_memory(2**31, "n=3")
    with pytest.raises(
        ConfigError, match=r"^n=3: this takes 3\.0 GiB at least, 2\.0 GiB of memory"
    ):
        memory.check_memory(3 * 2**30, "n=3")
    with pytest.raises(ConfigError, match="more memory than can be counted"):
        memory.check_memory(float("inf"), "n=3")
    with pytest.raises(ConfigError, match="more memory than can be counted"):
        memory.check_memory(10**40, "n=3")


def test_sizes_of_weights():
    assert memory.weights_size(lambda: torch.nn.Linear(3, 5)) == 4 * (3 * 5 + 5)
    assert memory.weights_size(lambda: torch.nn.BatchNorm1d(5)) == 4 * (2 * 5 + 2 * 5) + 8
    assert memory.weights_size(lambda: torch.nn.Linear(10**6, 10**6)) == 4 * (10**12 + 10**6)
    assert memory.weights_size(lambda: torch.nn.Linear(2**40, 2**40)) == float("inf")


def test_workers(monkeypatch):
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 2)
    memory.check_workers(8)
    with pytest.raises(ConfigError, match=r"^workers=99: at most 16 on this machine$"):
        memory.check_workers(99)
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 64)
    memory.check_workers(99)
