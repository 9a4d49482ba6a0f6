"""What is kept of files: one process fills while others wait, and no damage goes unseen."""

import contextlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from evonorm_plugins.data.cache import cached
from evonorm_plugins.data.in_memory import decoded
from evonorm_plugins.data.open import open_source
from evonorm_plugins.errors import DataError
from tests.biggan.pictures import picture
from tests.data.conftest import write_tar, write_zip

ARRAYS = {"images": np.arange(600, dtype=np.uint8).reshape(2, 3, 10, 10), "labels": np.arange(2)}
fork = multiprocessing.get_context("fork")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "set.zip").write_text("any")
    return [str(tmp_path / "set.zip")]


@pytest.fixture
def fill(files):
    """``fill(make)``: the arrays, made by ``make`` where they are not kept."""

    def fill(make=ARRAYS.values):
        return cached("kind", files, list(ARRAYS), make)

    return fill


def is_right(arrays):
    return all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


def never():
    raise AssertionError("it is made again")


def the_file(folder):
    (path,) = folder.rglob("*.npz")
    return path


def damages(content):
    """Cut off, empty, other things, without a key, and every byte changed, of a good file."""
    yield from (content[:n] for n in range(0, len(content), 50))
    yield b"no zip file"
    yield bytes(len(content))
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        yield bytes(damaged)


def test_no_damage_goes_unseen(fill, cache, capsys):
    assert is_right(fill())
    path, count = the_file(cache), 0
    content = path.read_bytes()
    assert is_right(fill(never))
    for damaged in damages(content):
        path.write_bytes(damaged)
        made = []
        assert is_right(fill(lambda: made.append(1) or ARRAYS.values()))  # noqa: B023 (called at once)
        # A byte that nobody reads, such as a time, changes nothing.
        assert capsys.readouterr().err.count(f"warning: {path} is damaged and made anew") == len(
            made
        )
        count += len(made)
        assert is_right(fill(never))
    assert count > 300


def test_a_key_that_is_not_there(fill, cache, capsys):
    fill()
    np.savez(the_file(cache), images=ARRAYS["images"])
    assert is_right(fill())
    assert "is damaged and made anew" in capsys.readouterr().err


def test_files_that_change_are_other_files(fill, files):
    fill()
    os.utime(files[0], (1, 1))
    assert fill(lambda: [ARRAYS["images"], np.ones(2)])["labels"].tolist() == [1, 1]
    os.unlink(files[0])
    with pytest.raises(DataError, match=r"set\.zip cannot be read: No such file"):
        fill()


@contextlib.contextmanager
def writing_slowly(monkeypatch, seconds):
    """Writes half of every file, waits, and writes the rest."""
    write = np.savez

    def slowly(file, **arrays):
        write(file, **arrays)
        file.flush()
        content = open(file.name, "rb").read()  # noqa: SIM115
        os.truncate(file.name, len(content) // 2)
        time.sleep(seconds)
        with open(file.name, "wb") as whole:
            whole.write(content)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", slowly)
        yield


def start(function):
    process = fork.Process(target=function)
    process.start()
    return process


def test_several_processes_fill_once_and_all_are_right(fill, tmp_path, monkeypatch):
    def one():
        def make():
            with open(tmp_path / "made", "a") as file:
                file.write("x")
            return ARRAYS.values()

        os._exit(0 if is_right(fill(make)) else 1)

    with writing_slowly(monkeypatch, 0.3):
        processes = [start(one) for _ in range(4)]
        for process in processes:
            process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "made").read_text() == "x"
    assert is_right(fill(never))


def test_a_filler_that_is_killed(fill, cache, monkeypatch):
    with writing_slowly(monkeypatch, 60):
        filler = start(fill)
        while not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size]:
            time.sleep(0.01)
    waiting = start(lambda: os._exit(0 if is_right(fill()) else 1))
    os.kill(filler.pid, signal.SIGKILL)
    waiting.join(30)
    assert waiting.exitcode == 0
    assert is_right(fill(never))
    kept = [p.name for p in cache.rglob("*") if p.is_file()]
    assert len(kept) == 2, "the file and its lock; what the killed one wrote is gone"
    filler.join()


def test_nobody_waits_for_ever(fill, cache, monkeypatch, capsys):
    with writing_slowly(monkeypatch, 60):
        filler = start(fill)
        while not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size]:
            time.sleep(0.01)
    monkeypatch.setattr("evonorm_plugins.data.cache.PATIENCE", 0.1)
    assert is_right(fill())
    assert "not waiting" in capsys.readouterr().err
    filler.kill()
    filler.join()


def test_where_nothing_can_be_kept(fill, cache, monkeypatch, capsys):
    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert is_right(fill())
    assert "cannot be kept: " in capsys.readouterr().err
    assert not list(cache.rglob("*.npz"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/here")
    assert is_right(fill())
    assert "nothing can be kept" in capsys.readouterr().err


def test_a_damaged_file_never_gives_black_images(tmp_path, cache, capsys):
    """As of a run that was killed while another one filled the same file."""
    files = {f"{label}/{n}.png": picture(label, n) for label in (0, 1) for n in (0, 1)}
    source = open_source(str(write_zip(tmp_path / "set.zip", files)))
    images = decoded(source).clone()
    assert images.float().mean((1, 2, 3)).min() > 10
    path = the_file(cache)
    path.write_bytes(path.read_bytes()[:500] + bytes(path.stat().st_size - 500))
    assert torch.equal(decoded(source), images)
    assert "is damaged and made anew" in capsys.readouterr().err


def test_a_damaged_index_of_shards_is_made_anew(tmp_path, cache, capsys):
    shard = write_tar(tmp_path / "a.tar", [("x.png", picture(0, 0)), ("x.cls", b"0")])
    before = open_source(str(shard))
    path = the_file(cache)
    content = path.read_bytes()
    names = "x.png".encode("utf-32-le"), "y.png".encode("utf-32-le")
    for damaged in (b"", content[:100], content.replace(*names), content[:-1]):
        path.write_bytes(damaged)
        assert open_source(str(shard)).read(0) == before.read(0)
        assert "is damaged and made anew" in capsys.readouterr().err
