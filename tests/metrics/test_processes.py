"""Two processes of torchrun give the scores of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.conftest import pictures, save_pngs

ROOT = Path(__file__).resolve().parents[2]


def run(processes, *arguments):
    """The record of ``evonorm-eval gan`` in so many processes; stdout must hold nothing else."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "evonorm_plugins.cli.eval"]
    done = subprocess.run(
        [*command, "gan", "--json", "--quiet", "--device", "cpu", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        return done
    return json.loads(done.stdout)


@pytest.mark.parametrize("n", [1, 61])
def test_scores_do_not_depend_on_processes(quick_extractor, tmp_path, n):
    fake = save_pngs(pictures(max(n, 2), 16), tmp_path / "fake")
    np.save(tmp_path / "real.npy", pictures(75, 20, 1))
    arguments = ["--feature-extractor", quick_extractor, "--batch-size", 8, "--fake", fake]
    arguments += ["--real", tmp_path / "real.npy", "--is", "--splits", 2, "--fid"]
    if n > 1:
        arguments += ["--kid", "--kid-subset-size", 20, "--prc", "--grid", tmp_path / "grid.png"]
    one = run(1, *arguments)
    pixels = (tmp_path / "grid.png").read_bytes() if n > 1 else b""
    two = run(2, *arguments)  # with n = 1, the second process has no batch of fake images
    assert len(one["scores"]) == (8 if n > 1 else 3)
    for key, value in one["scores"].items():
        assert two["scores"][key] == pytest.approx(value, rel=1e-6), key
    assert (one["input"]["processes"], two["input"]["processes"]) == (1, 2)
    if n > 1:
        assert (tmp_path / "grid.png").read_bytes() == pixels


def test_error_in_one_process_ends_all(quick_extractor, tmp_path):
    fake = save_pngs(pictures(20, 16), tmp_path / "fake")
    (fake / "0015.png").write_bytes(b"broken")  # of the second process
    done = run(2, "--feature-extractor", quick_extractor, "--batch-size", 8, "--fake", fake)
    assert done.returncode != 0
    assert "0015.png" in done.stderr
    assert done.stdout == ""
