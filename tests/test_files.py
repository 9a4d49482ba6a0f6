"""Files that are written whole or not at all: what is left in every case, and what is refused."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evonorm_plugins.errors import ConfigError, InputError, NoSpaceError
from evonorm_plugins.files import check_folder, check_output, holds_record, new_folder, replacing

ROOT = Path(__file__).resolve().parents[1]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new/er/a.txt"
    with replacing(path) as partial:
        partial.write_text("old")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.suffix == ".txt"
    assert path.read_text() == "old"

    def stopped():
        with replacing(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped()
    assert path.read_text() == "old"
    assert names(path.parent) == ["a.txt"]


def test_two_at_a_time_do_not_cut_each_other(tmp_path):
    path = tmp_path / "a"
    both = threading.Barrier(2)

    def write(text):
        with replacing(path) as partial, open(partial, "w") as file:
            file.write(text)
            both.wait(10)
            file.write(text)

    threads = [threading.Thread(target=write, args=[text]) for text in ("a" * 9, "b" * 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 18, "b" * 10)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_that_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a") as partial:
            partial.write_text("")
        with new_folder(tmp_path / "b") as partial:
            (partial / "c").write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == mode | (mode & 0o444) >> 2


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there/file")  # not there yet
    for text in ("first", "second"):
        with replacing(link) as partial:
            partial.write_text(text)
        assert link.is_symlink()
        assert (tmp_path / "there/file").read_text() == text
    assert names(tmp_path) == ["link", "there"]


def test_a_device_stays_a_device():
    with replacing("/dev/null") as partial:
        partial.write_text("gone")
    assert not Path("/dev/null").is_file()


def test_names_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("é" * 120 + ".txt")
    with replacing(path) as partial:
        partial.write_text("")
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("path", ["file/a", "file/b/c", "folder", "a" * 300, "a\0b"])
def test_what_cannot_be_written(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("old")
    Path("folder").mkdir()
    with pytest.raises(ConfigError):
        check_output(path)
    with pytest.raises((InputError, ValueError)), replacing(path):
        pass
    assert names(tmp_path) == ["file", "folder"]
    assert Path("file").read_text() == "old"


def test_a_folder_appears_once_it_is_complete(tmp_path):
    path = tmp_path / "new/set"

    def stopped():
        with new_folder(path) as partial:
            (partial / "1").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped()
    assert names(tmp_path / "new") == []
    path.mkdir()
    with new_folder(path) as partial:
        (partial / "1").write_text("")
        assert names(path) == []
    assert names(path) == ["1"]
    assert names(tmp_path / "new") == ["set"]


# Writers that say why they failed, and writers that do not; one that fails at once, one at its end.
WRITERS = """
import io, json, sys, zipfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
from evonorm_plugins.errors import NoSpaceError
from evonorm_plugins.files import new_folder, replacing

noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)

def zipped(path):
    with zipfile.ZipFile(path, "w") as archive, archive.open("a", "w") as file:
        file.write(noise.tobytes())

writers = {
    "text": lambda path: path.write_text("x" * 2**20),
    "torch": lambda path: torch.save({"a": torch.zeros(2**18), "b": torch.ones(3)}, path),
    "torch, many": lambda path: torch.save([torch.zeros(k) for k in range(600)], path),
    "numpy": lambda path: np.save(path, noise),
    "numpy, several": lambda path: np.savez(path, a=noise, b=noise),
    "picture": lambda path: Image.fromarray(noise).save(path, "PNG"),
    "zip": zipped,
}
folder, limit = Path(sys.argv[1]), sys.argv[2]
if limit == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
for name, write in writers.items():
    path = folder / {"numpy": "a.npy", "numpy, several": "a.npz"}.get(name, "a")
    path.write_text("old")
    try:
        with replacing(path) as partial:
            write(partial)
        print(name, "written")
    except NoSpaceError as error:
        assert str(error).startswith(f"no space left to write {path} ("), error
        assert str(error).endswith("what was there is untouched")
    assert path.read_text() == "old", name
    path.unlink()
    try:
        with new_folder(folder / "b") as partial:
            write(partial / path.name)
        print(name, "written")
    except NoSpaceError:
        pass
    assert not list(folder.iterdir()), name
print("done")
"""


def write_all(folder, limit):
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(folder), limit],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_files_larger_than_is_allowed(tmp_path):
    write_all(tmp_path, "limit")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk):
    write_all(small_disk, "disk")


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match=r"^write it again$"), replacing(tmp_path / "a"):
        raise RuntimeError("write it again")
    with pytest.raises(OSError, match="8 requested and 4 written"), replacing(tmp_path / "a"):
        raise OSError("8 requested and 4 written")
    assert names(tmp_path) == []


def test_full_at_the_very_beginning(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(NoSpaceError, match="no space left to write"), replacing(tmp_path / "a"):
        pass


def test_inputs_are_never_outputs(tmp_path):
    given = tmp_path / "gt.json"
    given.write_text("{}")
    (tmp_path / "link").symlink_to(given)
    (tmp_path / "sub").mkdir()
    for path in (given, tmp_path / "link", tmp_path / "sub/../gt.json"):
        for force in (False, True):
            with pytest.raises(ConfigError, match=r"^--out .* is an input, too"):
                check_output(path, inputs=[None, tmp_path / "none", given], force=force)


def test_what_another_wrote_is_not_replaced(tmp_path):
    path = tmp_path / "a.json"
    check_output(path)
    path.write_text('{"scores": 1, "protocol": 2}')
    with pytest.raises(ConfigError, match=r"a\.json is there already.* --force"):
        check_output(path)
    check_output(path, force=True)
    check_output(path, ours=lambda p: holds_record(p, "scores", "protocol"))
    with pytest.raises(ConfigError):
        check_output(path, ours=lambda p: holds_record(p, "scores", "extractor"))
    assert json.loads(path.read_text())["scores"] == 1
    for text in ("[]", "", "{", "[" * 10_000, "\udcff"):
        path.write_text(text, errors="surrogateescape")
        assert not holds_record(path)


def test_places_are_looked_at_without_a_trace(tmp_path):
    check_output(tmp_path / "new/er/a.json")
    check_folder(tmp_path / "new/er")
    check_folder(tmp_path)
    (tmp_path / "file").write_text("")
    for folder, message in (
        ("", "^output_dir=: the name is empty$"),
        (tmp_path / "file", r"^output_dir=.*file is a file, not a folder$"),
        (tmp_path / "file/a/b", r"^output_dir=.*b: .*file is a file, not a folder$"),
        ("a\0b", "cannot be written"),
        (tmp_path / ("a" * 300) / "b", "cannot be written: File name too long"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_folder(folder)
    with pytest.raises(ConfigError, match=r"^--out: the name is empty$"):
        check_output("")
    assert names(tmp_path) == ["file"]
