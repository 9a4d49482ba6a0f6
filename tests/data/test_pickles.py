"""Pickles are read without running what they hold."""

import contextlib
import os
import pathlib
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from evonorm_plugins.data.pickles import load_plain
from evonorm_plugins.errors import DataError


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
    read, expected = load_plain(path), contents()
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
    np.testing.assert_array_equal(load_plain(path)["w"], np.float32([1, 2]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (sorted, "builtins.sorted|__builtin__.sorted"),
        (np.array([sorted]), "array of 'O8'"),
        (np.zeros(2, [("a", "f4")]), "array of 'V4'"),
        (np.datetime64("2020-01-01"), "array of 'M8'"),
        (torch.zeros(2), "torch"),
        (pathlib.PurePosixPath("a"), "pathlib"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused(tmp_path, value, said):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(DataError, match=said):
        load_plain(path)


def test_changed_pickles_run_nothing(tmp_path):
    """Any byte changed: arrays come out, or an error that is caught."""
    generator = np.random.default_rng(0)
    path, good = tmp_path / "w.pkl", pickle.dumps(contents(), 2)
    for _ in range(300):
        content = bytearray(good)
        content[generator.integers(len(content))] = generator.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            load_plain(path)


def test_attack(tmp_path):
    path, witness = tmp_path / "w.pkl", tmp_path / "ran"
    attack = type("Attack", (), {"__reduce__": lambda _: (os.mkdir, (str(witness),))})()
    path.write_bytes(pickle.dumps({"a": attack}))
    with pytest.raises(DataError, match=r"w\.pkl cannot be read: it names \w+\.mkdir"):
        load_plain(path)
    assert not witness.exists()
