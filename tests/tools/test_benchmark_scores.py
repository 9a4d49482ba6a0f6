"""tools/benchmark.py scores: what is run beside what, and what is said of it."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from evonorm_plugins.errors import InputError, RunError

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def scores(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("benchmarks.scores")


def test_a_process_is_measured_as_a_whole(scores, tmp_path):
    code = "import time; x = bytes(200 * 2**20); time.sleep(0.2)"
    seconds, peak = scores._measured([sys.executable, "-c", code], tmp_path)
    assert seconds > 0.2
    assert peak > 200
    with pytest.raises(RunError, match="failed: no such image"):
        scores._measured([sys.executable, "-c", "raise SystemExit('no such image')"], tmp_path)


def test_the_tools_take_turns(scores, tmp_path, monkeypatch, capsys):
    """Ours over the sum of FID by the one and IS by the other."""
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"x")
    took = {"pytorch_fid": 30.0, "torch_fidelity.fidelity": 10.0, "evonorm_plugins.cli": 8.0}
    turns = []

    def measured(command, root):
        turns.append(command[2])
        return took[command[2]] - 2 * ("--fast" in command), 100.0

    monkeypatch.setattr(scores, "_measured", measured)
    args = SimpleNamespace(inception_weights=str(weights), images=3, size=8, rounds=2, json=False)
    scores.run(args)
    assert turns == [*took, "evonorm_plugins.cli"] * 2
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[3][-3:] == ["8.0", "0.20", "100"]
    assert rows[4][-3:] == ["6.0", "0.15", "100"]
    args.inception_weights = "gone.pth"
    with pytest.raises(InputError, match=r"there is no file gone\.pth"):
        scores.run(args)
