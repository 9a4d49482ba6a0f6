"""What a run refuses before any work, and what it leaves where it cannot go on."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from evonorm_plugins.classification import trainer as trainer_module
from evonorm_plugins.classification.run import FORMAT, train
from evonorm_plugins.cli.classify import main
from evonorm_plugins.errors import CheckpointError, ConfigError
from evonorm_plugins.training import memory


def _file(tmp_path, values):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


REFUSED = [
    (["output_dir="], "output_dir=: the name is empty"),
    (["output_dir=file"], "output_dir=file is a file, not a folder"),
    (["output_dir=file/run"], "file is a file, not a folder"),
    (["device=banana"], "device='banana' is no device: auto, cpu, cuda and cuda:1 are"),
    (["device=mps"], "device='mps' is no device"),
    (["workers=99"], "workers=99: at most 16 on this machine"),
    (["seed=-1"], "seed=-1 must be at least 0"),
    ([f"seed={10**30}"], "is not int"),
    (["width=3000"], "model=mobilenetv2_cifar, width=3000.0: this takes"),
    (["width=1e12"], "width=1000000000000.0: this takes more memory than can be counted"),
    (["batch_size=1000000000"], "batch_size=1000000000"),
    (["resolution=1000000000"], "resolution=1000000000"),
    (["model_options=3"], "model_options=3 is not dict"),
    (["--config", "none.yaml"], "'none.yaml' is no file and no classification config; known: "),
    (["--config", "file"], "file is empty: a config has lines like key: value"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_refused_before_any_work(options, tmp_path, monkeypatch, capsys, arguments, message):
    path = _file(tmp_path, options(output_dir="new"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("file").write_text("")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    status = main(["--config", str(path), *arguments])
    err = capsys.readouterr().err
    assert status == 2, err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert os.listdir() == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
def test_half_precision_is_refused_where_auto_is_a_cpu(config):
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU"):
        train(config(precision="fp16", device="auto"))


@pytest.mark.parametrize("resume", [False, True])
def test_the_best_alone_is_not_overwritten(config, tmp_path, resume):
    train(config(steps=1))
    (tmp_path / "run/checkpoint.pt").unlink()
    best = (tmp_path / "run/best.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"holds best\.pt of a run, but no checkpoint\.pt"):
        train(config(steps=1), resume=resume)
    assert (tmp_path / "run/best.pt").read_bytes() == best


def test_the_best_comes_after_a_checkpoint_to_go_on_from(config, tmp_path, monkeypatch):
    saved, save = [], FORMAT.save

    def recording(state, path):
        saved.append(os.path.basename(path))
        save(state, path)

    monkeypatch.setattr(FORMAT, "save", recording)
    values = config(epochs=1, checkpoint_every=100)
    train(values)
    assert saved == ["checkpoint.pt", "best.pt"]
    # Ended between the two: the run that goes on writes what is missing.
    best = FORMAT.load(tmp_path / "run/best.pt")
    (tmp_path / "run/best.pt").unlink()
    train(values, resume=True)
    again = FORMAT.load(tmp_path / "run/best.pt")
    assert again["record"] == best["record"]
    assert all(torch.equal(again["model"][key], best["model"][key]) for key in best["model"])


@pytest.mark.parametrize("broken", ["random", "model", "optimizer", "epochs", "step"])
def test_a_checkpoint_that_lacks_something(config, tmp_path, broken):
    train(config(steps=1))
    path = tmp_path / "run/checkpoint.pt"
    whole = FORMAT.load(path)
    FORMAT.save({k: v for k, v in whole.items() if k != broken}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt does not fit this run: it has no"):
        train(config(steps=2), resume=True)
    FORMAT.save({k: v for k, v in whole.items() if k != "config"}, path)
    with pytest.raises(CheckpointError, match="damaged checkpoint: it has no config"):
        train(config(steps=2), resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(command, options, config, tmp_path):
    train(config(steps=1))
    path = tmp_path / "run/checkpoint.pt"
    whole, left = path.read_bytes(), {p.name for p in path.parent.iterdir()}
    arguments = ["--config", _file(tmp_path, options(steps=2)), "--resume"]
    process = command(arguments, file_kib=len(whole) // 2 // 1024)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == 1, output
    assert f"error: no space left to write {path} (" in output
    assert "Traceback" not in output
    assert path.read_bytes() == whole
    assert {p.name for p in path.parent.iterdir()} == left
    assert train(config(steps=2), resume=True)["step"] == 2


def test_the_allocator_is_the_command_s(config, monkeypatch):
    """What is set for the whole process is set by the command, not by who trains within one."""
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: pytest.fail("set by the library"))
    train(config(steps=1))
    assert not hasattr(trainer_module, "keep_freed_memory")
