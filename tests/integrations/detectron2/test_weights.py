"""Weights are read without running what the file holds."""

import contextlib
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2.array_pickle import load_arrays
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


def contents():
    generator = np.random.default_rng(0)
    return {
        "model": OrderedDict(
            weight=generator.normal(size=(3, 4, 5)).astype("f4"),
            columns=np.asfortranarray(generator.normal(size=(3, 4))),
            big_endian=np.arange(5, dtype=">i2"),
            mask=np.array([[True, False]]),
            half=np.float16([1.5]),
            empty=np.zeros((0, 3), "f4"),
            scalar=np.float32(2.5),
            zero_dimensions=np.array(3),
            names=np.array(["a", "bc"]),
        ),
        "__author__": "somebody",
        "plain": [1, 2.5, None, True, "text", b"bytes", (1, {2}, frozenset({3})), 1j, 2**70],
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_the_model_zoo_holds(tmp_path, protocol):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(contents(), protocol))
    read, expected = load_arrays(path), contents()
    assert read.keys() == expected.keys()
    assert read["plain"] == expected["plain"]
    for name, array in expected["model"].items():
        assert type(read["model"][name]) is type(array)
        assert read["model"][name].dtype == array.dtype
        np.testing.assert_array_equal(read["model"][name], array)


def test_python_2(tmp_path):
    # As Python 2 wrote {"w": np.float32([1, 2])} with protocol 2: bytes are texts in Latin-1.
    path = tmp_path / "w.pkl"
    path.write_bytes(
        b"\x80\x02}q\x00U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87Rq\x01(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ"
        b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    np.testing.assert_array_equal(load_arrays(path)["w"], np.float32([1, 2]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (print, "builtins.print|__builtin__.print"),
        (np.array([print]), "array of 'O8'"),
        (np.zeros(2, [("a", "f4")]), "array of 'V4'"),
        (np.datetime64("2020-01-01"), "array of 'M8'"),
        (torch.zeros(2), "torch"),
        (nn.Linear(1, 1), "torch.nn"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused(tmp_path, value, said):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(pickle.UnpicklingError, match=said):
        load_arrays(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04", b"\x80\x04K\x01R.", b"(" * 9999])
def test_what_is_no_pickle(tmp_path, content):
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pkl"):
        check_weights(str(tmp_path / "w.pkl"))


def test_changed_pickles_run_nothing(tmp_path):
    """Any byte changed: arrays come out, or an error that is caught."""
    generator = np.random.default_rng(0)
    path, good = tmp_path / "w.pkl", pickle.dumps(contents(), 2)
    for _ in range(300):
        content = bytearray(good)
        content[generator.integers(len(content))] = generator.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(pickle.UnpicklingError):
            load_arrays(path)


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
def test_attacks(tmp_path, name):
    path, witness = tmp_path / name, tmp_path / "ran"
    content = {"model": {"weight": Attack(witness)}, "__author__": "somebody"}
    if name == "w.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"{name} is not read, since .*\.mkdir.*--trust-wei"):
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
