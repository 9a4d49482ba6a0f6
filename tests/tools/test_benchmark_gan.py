"""tools/benchmark.py gan: its tables, in one process and in two."""

import csv
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evonorm_plugins import command
from evonorm_plugins.benchmarks import measure

ROOT = Path(__file__).parents[2]
TINY = ["--resolution", "32", "--channels", "2", "--rounds", "1", "--threads", "1", "--json"]
TINY += ["--device", "cpu"]


def test_images_per_second_count_the_images_of_all_ranks(tmp_path):
    """Two processes with what torchrun gives them."""
    out = tmp_path / "times.csv"
    options = ["--batch", "4", "--norms", "EvoNormS0", "--csv", str(out)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tools/benchmark.py"), "gan", *TINY, *options],
            env={**os.environ, **given, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    found = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    assert found[1][0] == ""
    result = json.loads(found[0][0])
    assert (result["processes"], result["batch"]) == (2, 4)
    (row,) = result["rows"]
    assert row["images/s"] == pytest.approx(4000 / row["ms"], rel=0.01)
    assert [r["model"] for r in csv.DictReader(out.open())] == ["EvoNormS0"]


@pytest.fixture
def gan(monkeypatch, capsys):
    """``gan(*options)``: ``(status, stdout, stderr)``, in this process."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    benchmarks = importlib.import_module("benchmarks")

    def gan(*options):
        status = command.main(benchmarks, "tools/benchmark.py", ["gan", *TINY, *options])
        return status, *capsys.readouterr()

    return gan


def test_memory(gan):
    """In a process of its own."""
    status, out, err = gan("--batch", "2", "--memory", "--norms", "EvoNormS0")
    assert status == 0, err
    (row,) = json.loads(out)["rows"]
    assert (row["model"], row["of the first"]) == ("EvoNormS0", 1)
    assert row["MiB"] > 0


def test_memory_of_each_norm(gan, monkeypatch):
    """In turn, relative to the first; by default EvoNormS0 and what it replaces."""
    needed = {"EvoNormS0": 100.0, "BN-ReLU": 150.0}
    monkeypatch.setattr(measure, "apart", lambda function, args, name: needed[name])
    rows = json.loads(gan("--batch", "2", "--memory")[1])["rows"]
    assert [list(row.values()) for row in rows] == [["EvoNormS0", 100, 1.0], ["BN-ReLU", 150, 1.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "3"], "--batch 3 is not divisible by 2 ranks"),
        (["--batch", "2", "--memory"], "--memory are for one process"),
    ],
)
def test_what_two_ranks_cannot_do(gan, monkeypatch, arguments, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = gan(*arguments)
    assert status == 2
    assert message in err
