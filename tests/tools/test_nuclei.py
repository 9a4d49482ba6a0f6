"""tools/experiments/nuclei.py: what it runs, what it keeps of runs, tables and pictures of them."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
PIL = pytest.importorskip("PIL.Image")
ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/experiments/nuclei.py"
# In place of tools/train_net.py: two steps, then an end that the test has asked for.
TRAINS = """
import json, os, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
said = {k: sys.argv[sys.argv.index(k) + 1] for k in sys.argv if k.startswith(("SOLVER", "TEST"))}
(out / "said.json").write_text(json.dumps(said))
(out / "steps.csv").write_text("iteration,total_loss,seconds\\n0,3,0.5\\n1,2,0.25\\n")
(out / "metrics.json").write_text(
    json.dumps({"iteration": 0, "bbox/AP": 1.0, "segm/AP": 2.0}) + "\\n"
    + json.dumps({"iteration": 2, "bbox/AP": 3.0, "segm/AP": 4.0}) + "\\n")
if "SEED" in sys.argv and sys.argv[sys.argv.index("SEED") + 1] == "7":
    sys.exit("error: the loss is not finite at iteration 1: loss_cls nan")
ap = {"AP": 30.0 + int(sys.argv[sys.argv.index("SEED") + 1]), "AP50": 60.0, "AP75": 20.0}
record = {"ap_percent": {"bbox": ap, "segm": ap}, "cost": {"peak_memory_mib": 1000.4}}
(out / "model_0000000.pth").write_text("")
(out / "results.json").write_text(json.dumps(record | {"versions": {"torch": "2"}}))
"""


@pytest.fixture
def study(tmp_path):
    """``study(*arguments)``: the tool on an empty set, with a stand-in for the training."""
    pytest.importorskip("detectron2")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"instances_{split}.json").write_text("{}")
    (tmp_path / "trains.py").write_text(TRAINS)
    code = (
        f"import sys; sys.path.insert(0, {str(TOOL.parent)!r}); import nuclei; "
        f"inner = nuclei.command\n"
        f"nuclei.command = lambda *a: [sys.executable, {str(tmp_path / 'trains.py')!r}, "
        "*inner(*a)[2:]]\n"
        "sys.exit(nuclei.main())"
    )

    def study(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            **{"capture_output": True, "text": True, "cwd": tmp_path},
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return study


def test_runs_then_a_file_then_tables_and_pictures(study, tmp_path):
    run = ("run", "--data", tmp_path, "--output", "out", "--norms", "GN", "BN", "--batches", 2, 1)
    first = study(*run, "--seeds", 0, 1, 7)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "12 of 12 runs are done"
    started = [line.split()[1] for line in first.stdout.splitlines() if ":" in line.split()[0][:3]]
    assert started[:3] == ["R-18_GN_batch2_seed0", "R-18_BN_batch2_seed0", "R-18_GN_batch1_seed0"]
    out = tmp_path / "out/R-18_GN_batch2_seed1"
    said = json.loads((out / "said.json").read_text())
    # 750 steps of 8 images at a rate of 0.04.
    assert float(said["SOLVER.MAX_ITER"]) == 3000
    assert float(said["SOLVER.WARMUP_ITERS"]) == 200
    assert float(said["SOLVER.BASE_LR"]) == pytest.approx(0.01)
    assert not list(out.glob("model_0*.pth"))
    again = study(*run, "--seeds", 0, 1, 7)
    assert again.stdout == "12 of 12 runs are done\n"

    assert study("collect", "--output", "out", "--out", "all.json").returncode == 0
    runs = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert len(runs) == 12
    one = next(r for r in runs if (r["norm"], r["batch"], r["seed"]) == ("BN", 2, 1))
    assert one["curve"] == [[2, 1.0, 2.0], [4, 3.0, 4.0]]
    assert one["losses"] == [[2, 3.0], [4, 2.0]]
    assert (one["seconds_per_step"], one["peak_memory_mib"]) == (0.375, 1000)
    report = study("report", "all.json", "--figures", "figures")
    assert report.returncode == 0, report.stderr
    assert (
        "| R-18 BN | 2 | 0, 1, 7 (1 diverged) | 30.5 ± 0.5 | 60.0 ± 0.0 | 20.0 ± 0.0 | "
        "30.5 ± 0.5 | 60.0 ± 0.0 | 20.0 ± 0.0 | 0.38 | 1000 |"
    ) in report.stdout.splitlines()
    for name in ("nuclei_batches", "nuclei_curves"):
        assert PIL.open(tmp_path / f"figures/{name}.png").width > 500


def test_two_calls_do_not_train_the_same_run(study, tmp_path):
    (tmp_path / "trains.py").write_text("import time; time.sleep(2)\n" + TRAINS)
    run = ("run", "--data", tmp_path, "--output", "out", "--norms", "GN", "--batches", 1)
    lock = tmp_path / "out/R-18_GN_batch1_seed0/lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held = study(*run, "--seeds", 0)
    assert held.returncode == 1
    assert "1 runs are not done" in held.stderr
    assert not (lock.parent / "said.json").exists()


def test_it_stops_in_time_and_says_what_is_left(study, tmp_path):
    (tmp_path / "trains.py").write_text("import time; time.sleep(100)")
    begun = time.monotonic()
    run = ("run", "--data", tmp_path, "--output", "out", "--norms", "GN", "--seeds", 0)
    stopped = study(*run, "--minutes", 0.02)
    assert stopped.returncode == 1
    assert stopped.stderr == "error: 3 runs are not done: the same again goes on\n"
    assert time.monotonic() - begun < 60


def test_bad_input(study, tmp_path):
    gone = study("run", "--data", "gone", "--output", "out")
    assert gone.returncode == 2
    assert "--data gone: gone/instances_train.json or gone/train is not there" in gone.stderr
    none = study("collect", "--output", "nothing", "--out", "all.json")
    assert (none.returncode, none.stdout) == (2, "")
    bad = study("report", "trains.py")
    assert bad.returncode == 2
    assert "trains.py is no file of `nuclei.py collect`" in bad.stderr
