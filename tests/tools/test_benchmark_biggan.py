"""tools/benchmark_biggan.py: its tables, in one process and in two."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--resolution", "32", "--channels", "2", "--rounds", "1", "--threads", "1", "--json"]
TINY += ["--device", "cpu"]


def benchmark(*arguments, ranks=1):
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *start, str(ROOT / "tools/benchmark_biggan.py"), *TINY, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_images_per_second_count_the_images_of_all_ranks(tmp_path):
    out = tmp_path / "times.csv"
    found = benchmark("--batch", "4", "--norms", "EvoNormS0", "--csv", str(out), ranks=2)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert (result["processes"], result["batch"]) == (2, 4)
    (row,) = result["rows"]
    assert row["images/s"] == pytest.approx(4000 / row["ms"], rel=0.01)
    assert [r["model"] for r in csv.DictReader(out.open())] == ["EvoNormS0"]


def test_memory_of_each_norm():
    found = benchmark("--batch", "2", "--memory")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)["rows"]
    assert [row["model"] for row in rows] == ["EvoNormS0", "BN-ReLU"]
    assert all(row["MiB"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "ranks", "message"),
    [
        (["--batch", "0"], 1, "--batch 0 must be at least 1"),
        (["--reference", "nowhere"], 1, "--reference nowhere has no BigGANdeep.py"),
        (["--batch", "3"], 2, "--batch 3 is not divisible by 2 ranks"),
        (["--batch", "2", "--memory"], 2, "--memory are for one process"),
    ],
)
def test_bad_input(arguments, ranks, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    found = benchmark(*arguments)
    assert found.returncode == 2
    assert message in found.stderr
