"""Weights are read without running what the file holds, and written whole."""

import contextlib
import os
import pickle
import signal
from argparse import Namespace

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2.weights import (
    SafeCheckpointer,
    check_last_checkpoint,
    check_weights,
    local_file,
)
from evonorm_plugins.layers import EvoNormS0


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        import os

        return os.mkdir, (self.witness,)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04", b"\x80\x04K\x01R.", b"(" * 9999])
def test_what_is_no_pickle(tmp_path, content):
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pkl"):
        check_weights(str(tmp_path / "w.pkl"))


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
def test_attacks(tmp_path, name):
    path, witness = tmp_path / name, tmp_path / "ran"
    content = {"model": {"weight": Attack(witness)}, "__author__": "somebody"}
    if name == "w.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: .*\.mkdir.*--trust-w"):
        SafeCheckpointer(nn.Linear(1, 1)).load(str(path))
    with pytest.raises(CheckpointError, match="--trust-weights"):
        check_weights(str(path))
    assert not witness.exists()
    with contextlib.suppress(CheckpointError):  # what the code leaves is no array
        check_weights(str(path), trust=True)
    assert witness.exists()


def test_the_same_weights_from_both_kinds_of_file(small_cfg, tmp_path):
    source = build_model(small_cfg("BN")).backbone.bottom_up.state_dict()
    content = {"model": {k: v.numpy() for k, v in source.items()}, "__author__": "test"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({**content, "matching_heuristics": True}))
    model = build_model(small_cfg("BN"))
    SafeCheckpointer(model).load(str(tmp_path / "w.pkl"))
    loaded = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.items())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.pkl", [1], "holds no weights by name"),
        ("w.pkl", {"model": 3, "__author__": "x"}, "holds no weights by name"),
        ("w.pkl", {"a": "text"}, "a is a str, no array"),
        ("w.pth", [1], "holds no weights by name"),
        ("w.pth", {"model": {"a": 1}}, "a is a int, no array"),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_what_holds_no_weights(tmp_path, name, content, said, trust):
    path = tmp_path / name
    torch.save(content, path) if name == "w.pth" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=said):
        check_weights(str(path), trust=trust)


def test_weights_that_are_not_there():
    with pytest.raises(CheckpointError, match=r"there is no checkpoint gone\.pth"):
        local_file("gone.pth")
    # Port 9 discards, where it answers at all.
    with pytest.raises(CheckpointError, match=r"cannot fetch the checkpoint http://127.0.0.1:9/w"):
        local_file("http://127.0.0.1:9/w.pkl")


def test_what_torch_refuses_is_said_to_be_refused(tmp_path):
    """Not to be cut off: it is whole, and holds more than weights."""
    path = tmp_path / "w.pth"
    torch.save({"model": {}, "args": Namespace(a=1)}, path)
    with pytest.raises(CheckpointError, match=r"it names argparse\.Namespace\. .*--trust-weights"):
        check_weights(str(path))
    path.write_bytes(pickle.dumps({"model": {"weight": torch.ones(1)}}, protocol=4))
    with pytest.raises(CheckpointError, match=r"weights_only refuses .*operand.*--trust-weights"):
        check_weights(str(path))


def test_it_loads_again_after_an_error(tmp_path):
    model = nn.Linear(1, 1)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.save("w")
    (tmp_path / "cut.pth").write_bytes(b"PK")
    for path in ("cut.pth", "w.pth?unknown=1"):
        with pytest.raises(CheckpointError, match="cannot read checkpoint"):
            checkpointer.load(str(tmp_path / path))
    assert checkpointer.load(str(tmp_path / "w.pth")) == {}


def save_and_die(arguments):
    """Save 1, then be killed while 2 is written; ``arguments``: folder, the file it dies in."""
    folder, dies_in = arguments
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), folder)
    checkpointer.save("model_final", iteration=1)
    opens = checkpointer.path_manager.open

    @contextlib.contextmanager
    def dying(path, mode):
        with opens(path, mode) as file:
            if path.endswith(dies_in):
                file.write(b"PK" if "b" in mode else "")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            yield file

    checkpointer.path_manager.open = dying
    checkpointer.save("model_final" if dies_in == "model_final.pth" else "model_2", iteration=2)


@pytest.mark.parametrize("dies_in", ["model_final.pth", "last_checkpoint"])
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(fork, tmp_path, dies_in):
    process = fork(save_and_die, (tmp_path, dies_in))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(tmp_path))
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")
    check_last_checkpoint(tmp_path)
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 1}


def test_last_checkpoint_that_leads_nowhere(tmp_path):
    check_last_checkpoint(tmp_path)  # there is none: a run begins
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(tmp_path))
    for time, name in enumerate(("model_1", "model_0", "model_2")):
        checkpointer.save(name)
        os.utime(tmp_path / f"{name}.pth", (time, time))
    check_last_checkpoint(tmp_path)
    record = tmp_path / "last_checkpoint"
    (tmp_path / "model_2.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"names model_2\.pth, but cannot read"):
        check_last_checkpoint(tmp_path)
    for text, said in (("", "is empty"), ("gone.pth", "names gone.pth, but there is no")):
        record.write_text(text)
        offer = rf"last_checkpoint {said}.*echo model_0.pth > {record}$"
        with pytest.raises(CheckpointError, match=offer):
            check_last_checkpoint(tmp_path)
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path} is whole: begin anew"):
        check_last_checkpoint(tmp_path)


def test_weights_of_another_norm_are_dropped_where_a_run_begins(tmp_path):
    SafeCheckpointer(nn.Sequential(nn.BatchNorm2d(4)), str(tmp_path)).save("w")
    model = nn.Sequential(EvoNormS0(4))
    (tmp_path / "run").mkdir()
    checkpointer = SafeCheckpointer(model, str(tmp_path / "run"), drop_norms=True)
    checkpointer.resume_or_load(str(tmp_path / "w.pth"), resume=True)
    (tmp_path / "run/last_checkpoint").write_text("../w.pth")
    with pytest.raises(CheckpointError, match="trained with another norm"):
        checkpointer.resume_or_load("", resume=True)
