"""What a run refuses before any work, and what it leaves where it cannot go on."""

import os
from pathlib import Path

import pytest
import torch

from biggan import checkpoint
from biggan import train as train_command

REFUSED = [
    (["output_dir="], "output_dir=: the name is empty"),
    (["output_dir=file"], "output_dir=file is a file, not a folder"),
    (["output_dir=file/run"], "file is a file, not a folder"),
    (["output_dir=/proc/run"], "output_dir=/proc/run cannot be written"),
    (["device=banana"], "device='banana' is no device: auto, cpu, cuda and cuda:1 are"),
    (["device=mps"], "device='mps' is no device"),
    (["workers=99"], "workers=99: at most 16 on this machine"),
    (["seed=-1"], "seed=-1 must be at least 0"),
    ([f"seed={10**30}"], "is not int"),
    (["--seeds", f"0,{10**30}"], f"--seeds {10**30} must be from 0 to"),
    (["channels=4000000"], "channels=4000000: the networks: this takes"),
    (["z_size=1000000000000"], "the networks: this takes"),
    (["batch_size=1000000000"], "batch_size=1000000000: 1000000000 images at a time: this takes"),
    (["workers=4", "prefetch=1000000000"], "the batches of a rank and those read ahead take"),
    (["sample_rows=1000000000000"], "sample_rows=1000000000000: this takes"),
    (["data=none.zip"], "data=none.zip: there is no such folder or file"),
    (["--config", "none.yaml"], "'none.yaml' is no file and no gan config; known: "),
    (["--config", "file"], "file is empty: a config has lines like key: value"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_refused_before_any_work(
    tmp_path, monkeypatch, capsys, any_config, tiny_arguments, arguments, message
):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    status = train_command.main(["--config", str(any_config), *tiny_arguments("new"), *arguments])
    err = capsys.readouterr().err
    assert status == 2, err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_half_precision_is_refused_where_auto_is_a_cpu(
    tmp_path, capsys, any_config, tiny_arguments
):
    arguments = [*tiny_arguments(tmp_path / "new"), "precision=fp16", "device=auto"]
    assert train_command.main(["--config", str(any_config), *arguments]) == 2
    assert "error: precision=fp16 needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def in_process(any_config, arguments):
    return train_command.main(["--config", str(any_config), *map(str, arguments)])


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_the_best_alone_is_not_overwritten(tmp_path, capsys, any_config, tiny_arguments, resume):
    folder = tmp_path / "run"
    assert in_process(any_config, tiny_arguments(folder, steps=1)) == 0
    (folder / "checkpoint.pt").unlink()
    best = (folder / "best.pt").read_bytes()
    assert in_process(any_config, [*resume, *tiny_arguments(folder, steps=2)]) == 2
    assert "holds best.pt, good.pt of a run, but no checkpoint.pt" in capsys.readouterr().err
    assert (folder / "best.pt").read_bytes() == best


def test_the_best_comes_after_a_checkpoint_to_go_on_from(
    tmp_path, monkeypatch, any_config, tiny_arguments, quick_extractor
):
    saved, save = [], checkpoint.save

    def recording(state, path):
        saved.append(os.path.basename(path))
        save(state, path)

    monkeypatch.setattr(checkpoint, "save", recording)
    options = {"steps": 2, "score_every": 1, "checkpoint_every": 100, "score_samples": 24}
    arguments = tiny_arguments(tmp_path / "run", extractor=quick_extractor, **options)
    assert in_process(any_config, arguments) == 0
    assert saved[:3] == ["checkpoint.pt", "best-1.pt", "best.pt"]
    # Ended between the two files: the run that goes on writes what is missing.
    newest = checkpoint.load(tmp_path / "run/checkpoint.pt")
    names = [f"best-{step}.pt" for _, step in newest["best"] if step == 2]
    for name in names:
        (tmp_path / "run" / name).unlink()
    assert in_process(any_config, ["--resume", *arguments]) == 0
    for name in names:
        again = checkpoint.load(tmp_path / "run" / name)["ema"]
        assert all(torch.equal(again[key], newest["ema"][key]) for key in newest["ema"])


@pytest.mark.parametrize("broken", ["random", "generator", "g_optimizer", "position", "images"])
def test_a_checkpoint_that_lacks_something(tmp_path, capsys, any_config, tiny_arguments, broken):
    folder = tmp_path / "run"
    assert in_process(any_config, tiny_arguments(folder, steps=1)) == 0
    whole = checkpoint.load(folder / "checkpoint.pt")
    for damaged in ({k: v for k, v in whole.items() if k != broken}, {**whole, broken: "no"}):
        if broken in ("position", "images") and broken in damaged:
            continue  # a number, which may be any
        checkpoint.save(damaged, folder / "checkpoint.pt")
        capsys.readouterr()
        assert in_process(any_config, ["--resume", *tiny_arguments(folder, steps=2)]) == 2
        err = capsys.readouterr().err
        assert f"error: {folder}/checkpoint.pt does not fit this run: " in err
        assert err.count("\n") == 1


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, any_config, train, tiny_arguments):
    folder = tmp_path / "run"
    assert in_process(any_config, tiny_arguments(folder, steps=1)) == 0
    whole = (folder / "checkpoint.pt").read_bytes()
    left = {p.name for p in folder.iterdir()}
    limit = len(whole) // 2 // 1024
    code, output = train(tiny_arguments(folder, steps=2), resume=True, file_kib=limit)
    assert code == 1, output
    assert f"error: no space left to write {folder}/checkpoint.pt (" in output
    assert "Traceback" not in output
    assert (folder / "checkpoint.pt").read_bytes() == whole
    assert {p.name for p in folder.iterdir()} == left
    assert in_process(any_config, ["--resume", *tiny_arguments(folder, steps=2)]) == 0
    assert checkpoint.load(folder / "checkpoint.pt")["step"] == 2
