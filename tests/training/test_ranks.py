"""Devices by name, one process alone, and two that count together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.training.precision import check_precision
from evonorm_plugins.training.ranks import Ranks, pick_device

ROOT = Path(__file__).resolve().parents[2]


needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(2)``: torch sees so many."""

    def gpus(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return gpus


def test_devices_without_a_gpu(gpus):
    gpus(0)
    assert [pick_device(name) for name in (None, "auto", "cpu")] == [torch.device("cpu")] * 3
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"device={name}: this torch sees no CUDA device; au"):
            pick_device(name)


def test_devices_with_gpus(gpus):
    gpus(2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:0")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("auto", local=1) == torch.device("cuda:1")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="sees 2 CUDA devices, the last is cuda:1"):
        pick_device("cuda:2")
    with pytest.raises(ConfigError, match=r"3 ranks or more .* 2 CUDA devices: lower --nproc_per"):
        pick_device("cuda", local=2)
    with pytest.raises(ConfigError, match="a GPU of its own with device=cuda"):
        pick_device("cuda:1", local=0)


@pytest.mark.parametrize("name", ["mps", "banana", "", "cuda:", "cuda:x", "cpu:0", "CUDA", "meta"])
def test_what_is_no_device(gpus, name):
    gpus(2)
    with pytest.raises(ConfigError, match=f"device='{name}' is no device: auto, cpu, cuda and cu"):
        pick_device(name)


def test_half_precision_needs_a_gpu():
    check_precision("fp16", torch.device("cuda:0"))
    check_precision("fp16", "auto")
    check_precision("bf16", torch.device("cpu"))
    for device in ("cpu", torch.device("cpu")):
        with pytest.raises(ConfigError, match="precision=fp16 needs a GPU"):
            check_precision("fp16", device)


def test_one_process_needs_no_group():
    with Ranks("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.is_main) == (0, 1, True)
        values = torch.arange(3.0)
        assert torch.equal(ranks.sum(values), values)
        assert torch.equal(ranks.mean(values), values)
        assert ranks.gather_objects(3) == [3]
        assert (ranks.any(0), ranks.any("signal")) == (False, True)
        assert ranks.main_first(lambda: 5) == 5
    alone = Ranks.current()
    assert (alone.rank, alone.size, alone.is_main, alone.gather_objects("a")) == (0, 1, True, ["a"])


def test_a_group_that_another_has_made(monkeypatch):
    """One that was alone before does not hide it."""
    Ranks("cpu")
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    found = Ranks.current()
    assert (found.rank, found.size, found.is_main, found.control) == (1, 3, False, None)


def test_errors_of_one_process_are_its_own():
    for error in (RuntimeError("connection closed by peer"), NonFiniteError("timed out")):
        with pytest.raises(type(error), match=str(error)), Ranks("cpu"):
            raise error
    Ranks.current().close()


RANK = """
import os, sys, torch
from evonorm_plugins.errors import run_command
from evonorm_plugins.training.ranks import Ranks

def work():
    with Ranks("cpu", 0.5) as ranks:
        found = Ranks.current()
        assert found is ranks
        values = torch.tensor([1.0, ranks.rank])
        order = []
        ranks.main_first(lambda: order.append(ranks.rank))
        found = (
            ranks.sum(values).tolist(), values.tolist()[0], ranks.mean(values).tolist(),
            ranks.gather_objects({"rank": ranks.rank}), ranks.any(ranks.rank == 1),
            [int(t) for t in ranks.gather(torch.tensor(ranks.rank))], order == [ranks.rank],
        )
        # In one piece: both write to one pipe.
        os.write(1, (" ".join(map(str, found)) + chr(10)).encode())
        assert Ranks.current().control is ranks.control
        if sys.argv[1] == "lost":
            if ranks.rank == 1:
                raise ValueError("this one ends")
            ranks.sum(values)

sys.exit(run_command(work))
"""


def torchrun(tmp_path, how):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [sys.executable, *launch, str(script), how],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_gloo
def test_two_processes_count_together(tmp_path):
    done = torchrun(tmp_path, "both")
    assert done.returncode == 0, done.stderr
    same = "[2.0, 1.0] 1.0 [1.0, 0.5] [{'rank': 0}, {'rank': 1}] True [0, 1] True"
    assert done.stdout.splitlines() == [same, same]


@needs_gloo
def test_one_that_ends_ends_the_other(tmp_path):
    done = torchrun(tmp_path, "lost")
    assert done.returncode == 1
    assert "ValueError: this one ends" in done.stderr


def test_what_torch_says_of_a_lost_rank():
    assert Ranks.says_lost(RuntimeError("[gloo/transport] Connection closed by peer"))
    assert not Ranks.says_lost(RuntimeError("shapes do not fit"))
    assert not Ranks.says_lost(NonFiniteError("connection"))
    assert not Ranks.says_lost(ValueError("connection"))
