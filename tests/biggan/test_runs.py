"""Whole runs in processes of their own: killed, stopped, resumed, on two ranks, with bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from biggan import checkpoint
from biggan import train as train_command
from biggan.sampling import load_generator
from evonorm_plugins.training.records import read_records

ROOT = Path(__file__).resolve().parents[2]
NO_GLOO = not (torch.distributed.is_available() and torch.distributed.is_gloo_available())
two_ranks = pytest.mark.skipif(NO_GLOO, reason="this torch has no gloo")


def state(folder, name="checkpoint.pt"):
    return checkpoint.load(Path(folder) / name)


def assert_same(a, b, where=""):
    """Two checkpoints hold the same, bit for bit; paths aside."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "output_dir":
                assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{k}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("norm", ["EvoNormS0", "BN-ReLU"])
def test_killed_anywhere_and_resumed(norm, tmp_path, train, start_train, tiny_arguments):
    options = {"norm": norm, "steps": 30, "checkpoint_every": 1, "sample_every": 10}
    code, output = train(tiny_arguments(tmp_path / "whole", **options))
    assert code == 0, output
    arguments = tiny_arguments(tmp_path / "killed", **options)
    path, kills, draw = tmp_path / "killed/checkpoint.pt", 0, random.Random(norm)
    for _ in range(2):
        process = start_train(arguments, resume=True)
        before = path.stat().st_mtime_ns if path.exists() else 0
        # Once it has saved something new: at any moment of a step, of a write, of a rename.
        while process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns != before:
                time.sleep(draw.uniform(0, 0.1))
                process.kill()
                kills += 1
                break
            time.sleep(0.001)
        process.communicate()
    assert kills == 2
    assert state(tmp_path / "killed")["step"] < 30
    code, output = train(arguments, resume=True)
    assert code == 0, output
    assert "resuming" in output
    assert_same(state(tmp_path / "killed"), state(tmp_path / "whole"))
    steps = [r["step"] for r in read_records(tmp_path / "killed/metrics.jsonl") if "d_loss" in r]
    assert steps == list(range(1, 31))
    with open(tmp_path / "killed/metrics.jsonl") as f:
        killed = [json.loads(line) for line in f]
    whole = read_records(tmp_path / "whole/metrics.jsonl")
    assert [r.get("d_loss") for r in killed] == [r.get("d_loss") for r in whole]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(number, tmp_path, start_train, train, tiny_arguments):
    folder = tmp_path / "run"
    arguments = tiny_arguments(folder, steps=100_000, checkpoint_every=10**6, workers=1)
    process = start_train(arguments)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    # To the whole group, workers included, as a terminal and a scheduler send it.
    os.killpg(process.pid, number)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 1, output
    assert f"stopped by {signal.Signals(number).name}; --resume goes on" in output
    assert "Traceback" not in output
    step = state(folder)["step"]
    assert 0 < step < 100_000
    code, output = train(tiny_arguments(folder, steps=step + 2, workers=1), resume=True)
    assert code == 0, output
    assert f"resuming {folder} at step {step}" in output
    assert state(folder)["step"] == step + 2


@two_ranks
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_two_ranks_equal_one(norm, tmp_path, train, tiny_arguments):
    options = {"norm": norm, "steps": 3, "d_steps": 2, "adam_eps": 1e-2, "accumulations": 2}
    for ranks in (1, 2):
        code, output = train(tiny_arguments(tmp_path / str(ranks), **options), ranks=ranks)
        assert code == 0, output
    one, two = state(tmp_path / "1"), state(tmp_path / "2")
    assert (one["ranks"], two["ranks"], one["position"]) == (1, 2, two["position"])
    for key in ("generator", "discriminator", "ema"):
        for name in one[key]:
            torch.testing.assert_close(
                two[key][name],
                one[key][name],
                rtol=1e-4,
                atol=5e-6,
                msg=lambda m, n=name: f"{n} {m}",
            )
    numbers = [
        {k: v for k, v in r.items() if k.startswith(("d_loss", "g_loss", "d_acc", "d_score"))}
        for folder in "12"
        for r in read_records(tmp_path / folder / "metrics.jsonl")
    ]
    for a, b in zip(numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    # Two ranks' run goes on with one, and says what that changes.
    more = tiny_arguments(tmp_path / "2", **{**options, "steps": 4})
    code, output = train(more, resume=True)
    assert code == 0, output
    assert "saved by 2 ranks, goes on with 1: images, latents" in output
    assert state(tmp_path / "2")["step"] == 4


@two_ranks
def test_a_rank_that_dies_ends_the_others(tmp_path, any_config, tiny_arguments):
    folder = tmp_path / "run"
    options = tiny_arguments(folder, norm="EvoNormB0", steps=100_000, checkpoint_every=5)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "biggan.train", "--config", any_config, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not (folder / "checkpoint.pt").exists():
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {
        int(pid)
        for pid in children
        if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    }
    start = time.monotonic()
    os.kill(ranks.pop(), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in output or "exitcode  : -9" in output or "-9" in output
    assert state(folder)["step"] >= 5


def test_bad_input_before_any_work(tmp_path, train, tiny_arguments, image_zip):
    def message(expected, code=2, **options):
        status, output = train(tiny_arguments(tmp_path / "new", **options))
        assert status == code, output
        assert "Traceback" not in output
        assert expected in output.replace("\n", " "), output
        assert not (tmp_path / "new").exists()

    message("error: there is no option 'norn'; did you mean 'norm'?", norn="EvoNormB0")
    message("num_classes=5, but the data has 3 classes", num_classes=5)
    message("is 32x32, smaller than resolution=64", resolution=64, channel_multipliers="null")
    message(
        "batch_size=9 is not divisible by 1 ranks x accumulations=2", batch_size=9, accumulations=2
    )


@two_ranks
def test_batch_that_ranks_do_not_divide(tmp_path, train, tiny_arguments):
    code, output = train(tiny_arguments(tmp_path / "new", batch_size=9), ranks=2)
    assert code != 0
    assert "batch_size=9 is not divisible by 2 ranks x accumulations=1; 8 or 10 would be" in output


def test_what_is_there_is_not_overwritten(tmp_path, train, tiny_arguments):
    folder = tmp_path / "run"
    assert train(tiny_arguments(folder, steps=2))[0] == 0
    whole = (folder / "checkpoint.pt").read_bytes()
    for options, resume, expected in (
        ({}, False, "holds a run already: go on with --resume"),
        ({"norm": "EvoNormB0"}, True, "was trained with norm='EvoNormS0' (now 'EvoNormB0')"),
        (
            {"data": "digits"},
            True,
            "trained on 3 classes (class0, class1, class2), the data has 10",
        ),
    ):
        code, output = train(tiny_arguments(folder, **{"steps": 4, **options}), resume=resume)
        assert code == 2, output
        assert expected in output
        assert (folder / "checkpoint.pt").read_bytes() == whole
    generator, config = load_generator(folder / "best.pt")
    assert (generator.step, config.num_classes, generator.classes) == (
        2,
        3,
        ["class0", "class1", "class2"],
    )


def test_not_finite_keeps_the_last_checkpoint(tmp_path, train, tiny_arguments):
    folder = tmp_path / "run"
    assert train(tiny_arguments(folder, steps=2))[0] == 0
    broken = state(folder)
    broken["discriminator"]["blocks.0.conv2.weight"][0] = float("inf")
    checkpoint.save(broken, folder / "checkpoint.pt")
    whole = (folder / "checkpoint.pt").read_bytes()
    code, output = train(tiny_arguments(folder, steps=6, checkpoint_every=1), resume=True)
    assert code == 1, output
    assert "step 3: the discriminator's loss is nan" in output
    assert "first tensor that is not finite: discriminator blocks.0.conv2.weight" in output
    assert f"The last checkpoint, {folder}/checkpoint.pt, is from before" in output
    assert (folder / "checkpoint.pt").read_bytes() == whole


def test_seeds_after_each_other(tmp_path, train, tiny_arguments):
    options = tiny_arguments(tmp_path, steps=1)
    code, output = train(["--seeds", "0,1", *options])
    assert code == 0, output
    a, b = state(tmp_path / "seed0"), state(tmp_path / "seed1")
    assert (a["config"]["seed"], b["config"]["seed"]) == (0, 1)
    assert not torch.equal(a["ema"]["conv.weight"], b["ema"]["conv.weight"])
    code, output = train(["--seeds", "0,0", *options])
    assert code == 2
    assert "'0,0' is not a list of different seeds like 0,1,2" in output


def test_configs_after_each_other(tmp_path, fork, tiny_arguments):
    """As the sweep over the groups of GN-ReLU; two runs never share a folder."""
    files = []
    for groups in (1, 2):
        files.append(tmp_path / f"{groups}.yaml")
        folder = json.dumps(str(tmp_path / f"run{groups}"))
        files[-1].write_text(f"norm: GN-ReLU(groups={groups})\noutput_dir: {folder}\n")
    given = [text for file in files for text in ("--config", str(file))]
    options = [o for o in tiny_arguments(tmp_path, steps=1) if "=" in o and "output_dir" not in o]

    def train(*more):
        process = fork(train_command.main, [*given, *options, *more])
        output = "".join(process.communicate(timeout=150))
        return process.returncode, output

    code, output = train()
    assert code == 0, output
    norms = [state(tmp_path / f"run{groups}")["config"]["norm"] for groups in (1, 2)]
    assert norms == ["GN-ReLU(groups=1)", "GN-ReLU(groups=2)"]
    files[1].write_text(files[1].read_text() + "timeout_minutes: 3\n")
    code, output = train()
    assert code == 2
    assert "timeout_minutes=3.0 of one --config, 10.0 of another" in output
    shared = f"output_dir={tmp_path}/one"
    code, output = train(shared, "timeout_minutes=5")
    assert code == 2
    assert f"error: {shared} is that of several --config" in output
