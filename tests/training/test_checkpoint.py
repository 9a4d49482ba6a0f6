"""Checkpoints: what is read back, what is refused, and what a full disk leaves."""

import importlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from evonorm_plugins.errors import CheckpointError, ConfigError
from evonorm_plugins.training.checkpoint import Format, loading

ROOT = Path(__file__).resolve().parents[2]
FORMAT = Format("evonorm-plugins test", 3, {"config": dict, "step": int})
STATE = {"config": {"a": 1}, "step": 7, "weight": torch.arange(4.0)}


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new/a.pt"
    FORMAT.save(STATE, path)
    state = FORMAT.load(path)
    assert (state["config"], state["step"], state["version"]) == ({"a": 1}, 7, 3)
    assert torch.equal(state["weight"], STATE["weight"])
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


WHOLE = {"format": FORMAT.name, "version": 3, **STATE}
DAMAGED = [
    ([1, 2], "is not a test checkpoint"),
    (torch.zeros(3), "is not a test checkpoint"),
    ({**WHOLE, "format": "evonorm-plugins biggan"}, "is not a test checkpoint"),
    ({k: v for k, v in WHOLE.items() if k != "version"}, "damaged checkpoint: it has no version"),
    ({**WHOLE, "version": "3"}, "damaged checkpoint: its version is no int"),
    ({**WHOLE, "version": 4}, "has version 4, this package reads up to 3"),
    ({k: v for k, v in WHOLE.items() if k != "config"}, "damaged checkpoint: it has no config"),
    ({**WHOLE, "config": []}, "damaged checkpoint: its config is no dict"),
]


@pytest.mark.parametrize(("state", "message"), DAMAGED, ids=[m for _, m in DAMAGED])
def test_what_is_no_checkpoint(tmp_path, state, message):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        FORMAT.load(tmp_path / "a.pt")


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        FORMAT.load(path)
    FORMAT.save(STATE, path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"cannot read checkpoint .*{len(content)} byte"):
            FORMAT.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        FORMAT.load(path)
    assert not Path("ran").exists()


def test_a_state_that_does_not_fit():
    model = torch.nn.Linear(2, 3)
    for state in ({"weight": torch.zeros(1)}, {}, [], None):
        with pytest.raises(CheckpointError, match=r"^x\.pt does not fit this run: "):
            loading("x.pt", model.load_state_dict, state)
    with pytest.raises(CheckpointError, match="it has no 'step'"):
        loading("x.pt", lambda state: state["step"], {})

    def refuse(_):
        raise ConfigError("another norm")

    with pytest.raises(ConfigError, match=r"^another norm$"):
        loading("x.pt", refuse, {})


def test_what_a_run_begins_with(tmp_path):
    path = tmp_path / "run/checkpoint.pt"
    for resume in (False, True):
        assert FORMAT.resumed(path, resume=resume) is None
    assert not path.parent.exists()
    FORMAT.save(STATE, path)
    assert FORMAT.resumed(path, resume=True)["step"] == 7
    with pytest.raises(ConfigError, match=r"holds a run already: go on with --resume, or name"):
        FORMAT.resumed(path, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_the_best_of_a_run_without_its_checkpoint_is_not_overwritten(tmp_path, resume):
    FORMAT.save(STATE, tmp_path / "best.pt")
    with pytest.raises(ConfigError, match=r"holds best\.pt of a run, but no checkpoint\.pt to go"):
        FORMAT.resumed(tmp_path / "checkpoint.pt", resume=resume)


@pytest.mark.parametrize("folder", ["", "file", "file/run"])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(ConfigError, match=r"^output_dir=.*(empty|is a file, not a folder)"):
        FORMAT.resumed(os.path.join(folder, "checkpoint.pt"), resume=False)


SAVES = """
import resource, sys, torch
from evonorm_plugins.errors import NoSpaceError
from evonorm_plugins.training.checkpoint import Format

FORMAT, path = Format("evonorm-plugins test"), sys.argv[1]
states = {
    "one": {"a": torch.zeros(2**18)},
    "many": {str(k): torch.zeros(k) for k in range(400)},
    "text": {"a": "x" * 2**20},
}
FORMAT.save({"step": 1}, path)
whole = open(path, "rb").read()
for limit in [0, 1, 300, 4096, 40_000, 200_000]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name, state in states.items():
        try:
            FORMAT.save(state, path)
            print(limit, name, "written")
        except NoSpaceError as error:
            assert str(error).startswith(f"no space left to write {path} ("), error
        assert open(path, "rb").read() == whole
print("done")
"""


def test_a_full_disk_leaves_what_was_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVES, str(tmp_path / "a.pt")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("biggan.checkpoint", {"config", "classes", "step"}),
        ("evonorm_plugins.classification.run", {"config", "classes"}),
        (
            "evonorm_plugins.integrations.torchvision.checkpoint",
            {"options", "categories", "norms", "model"},
        ),
    ],
)
def test_what_each_training_needs(tmp_path, module, needs):
    made_by = importlib.import_module(module).FORMAT
    whole = {key: kind() for key, kind in made_by.needs.items()}
    assert whole.keys() == needs
    made_by.save(whole, tmp_path / "a.pt")
    made_by.load(tmp_path / "a.pt")
    for key in needs:
        made_by.save({k: v for k, v in whole.items() if k != key}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=f"is a damaged checkpoint: it has no {key}"):
            made_by.load(tmp_path / "a.pt")
