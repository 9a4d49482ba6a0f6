"""Two processes give the scores of one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evonorm_plugins.cli.eval import main
from tests.metrics.conftest import pictures, save_pngs

ROOT = Path(__file__).resolve().parents[2]


OPTIONS = ["gan", "--json", "--quiet", "--device", "cpu"]


@pytest.mark.parametrize("n", [1, 61])
def test_scores_do_not_depend_on_processes(fork, quick_extractor, tmp_path, n):
    def run(processes):
        """The record of so many processes; stdout must hold nothing else."""
        command = fork(main, [*OPTIONS, *arguments], ranks=processes)
        out, err = command.communicate(timeout=120)
        assert command.returncode == 0, err
        return json.loads(out)

    fake = save_pngs(pictures(max(n, 2), 16), tmp_path / "fake")
    np.save(tmp_path / "real.npy", pictures(75, 20, 1))
    arguments = ["--feature-extractor", quick_extractor, "--batch-size", 8, "--fake", fake]
    arguments += ["--real", tmp_path / "real.npy", "--is", "--splits", 2, "--fid"]
    if n > 1:
        arguments += ["--kid", "--kid-subset-size", 20, "--prc", "--dc", "--fd-infinity"]
        arguments += ["--fd-infinity-smallest", 20, "--grid", tmp_path / "grid.png"]
    one = run(1)
    pixels = (tmp_path / "grid.png").read_bytes() if n > 1 else b""
    two = run(2)  # with n = 1, the second process has no batch of fake images
    assert len(one["scores"]) == (11 if n > 1 else 3)
    for key, value in one["scores"].items():
        assert two["scores"][key] == pytest.approx(value, rel=1e-6), key
    assert (one["input"]["processes"], two["input"]["processes"]) == (1, 2)
    if n > 1:
        assert (tmp_path / "grid.png").read_bytes() == pixels


def test_error_in_one_process_ends_all(quick_extractor, tmp_path):
    fake = save_pngs(pictures(20, 16), tmp_path / "fake")
    (fake / "0015.png").write_bytes(b"broken")  # of the second process
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--feature-extractor", quick_extractor, "--batch-size", "8", "--fake", fake]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "evonorm_plugins.cli", "eval", *OPTIONS, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "0015.png" in done.stderr
    assert done.stdout == ""
