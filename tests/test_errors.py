"""How a command ends: exit status and one line for everything that can be met."""

import os
import subprocess
import sys

import pytest

from evonorm_plugins import errors
from evonorm_plugins.errors import run_command


def fail(error):
    def work():
        raise error

    return run_command(work)


ENDINGS = [
    (errors.InputError("a\n  b"), 2, "error: a b\n"),
    (errors.CheckpointError("c"), 2, "error: c\n"),
    (errors.NonFiniteError("d"), 1, "error: d\n"),
    (KeyboardInterrupt(), 1, "error: interrupted\n"),
    (FileNotFoundError(2, "No such file or directory", "x.zip"), 2,
     "error: x.zip: No such file or directory\n"),
    (PermissionError(13, "Permission denied", "x.zip"), 2, "error: x.zip: Permission denied\n"),
    (OSError(28, "No space left on device", "m.jsonl"), 1,
     "error: m.jsonl: no space left to write\n"),
    (OSError(5, "Input/output error"), 1, "error: Input/output error\n"),
    (OSError("8 requested and 4 written"), 1, "error: OSError: 8 requested and 4 written\n"),
    (MemoryError(), 1, "error: there is not enough memory\n"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1,
     "error: there is not enough memory: [enforce fail] DefaultCPUAllocator: can't allocate "
     "memory: you tried\n"),
    (RuntimeError("cuDNN"), 1, "error: RuntimeError: cuDNN\n"),
    (ImportError("No module named 'h5py'"), 2,
     "error: No module named 'h5py'; to install what it needs: pip install "
     '"evonorm-plugins[all]"\n'),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status", "line"), ENDINGS, ids=[str(e) for e, _, _ in ENDINGS])
def test_one_line(capsys, error, status, line):
    assert fail(error) == status
    assert capsys.readouterr() == ("", line)


def test_statuses_of_the_work():
    assert [run_command(lambda status=s: status) for s in (None, 0, 1, 2)] == [0, 0, 1, 2]


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(KeyError):
        fail(KeyError("x"))


def test_ranks_are_named(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert fail(errors.DataError("bad image")) == 2
    assert capsys.readouterr().err == "rank 1: error: bad image\n"


LOST = """
import atexit, time
from evonorm_plugins.errors import LostRankError, run_command

atexit.register(time.sleep, 60)  # as a process group waits for who is gone
def work():
    raise LostRankError("another rank is gone")
run_command(work)
"""


def test_a_lost_rank_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "error: another rank is gone\n")


def test_who_reads_the_output_may_stop():
    code = (
        "import sys\nfrom evonorm_plugins.errors import run_command\n"
        "sys.exit(run_command(lambda: [print('x' * 1000) for _ in range(1000)] and None))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
