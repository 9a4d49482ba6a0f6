"""tools/figures/gan_losses.py: curves of several runs in one picture."""

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/figures/gan_losses.py"))


def write(folder, records):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def losses(step):
    keys = ("d_loss", "g_loss", "d_accuracy_real", "d_accuracy_fake")
    return {"step": step, **{key: 1 / step for key in keys}}


def test_records_without_losses_are_left_out(tmp_path):
    run = write(tmp_path / "a", [losses(10), {"step": 10, "fid": 3.0}, losses(20)])
    assert [r["step"] for r in TOOL["read_run"](run)] == [10, 20]


def test_picture(tmp_path, capsys):
    runs = [write(tmp_path / n, [losses(10 * i) for i in range(1, 9)]) for n in "ab"]
    out = tmp_path / "curves.png"
    assert TOOL["main"]([f"A={runs[0]}", f"B={runs[1]}", "--out", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.glob("*.png")] == ["curves.png"]


def test_bad_input(tmp_path, capsys):
    empty = write(tmp_path / "empty", [{"step": 10, "fid": 3.0}])
    for folder in (tmp_path, empty):
        assert TOOL["main"]([f"A={folder}"]) == 2
        assert f"{folder / 'metrics.jsonl'} is not there or holds no losses" in (
            capsys.readouterr().err
        )
    with pytest.raises(SystemExit) as stop:
        TOOL["main"]([str(empty)])
    assert stop.value.code == 2
