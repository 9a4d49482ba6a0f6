"""Weights are read without running what the file holds."""

import contextlib
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2.weights import (
    SafeCheckpointer,
    check_weights,
    local_file,
)


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
