"""tools/figures/losses.py: the losses of several runs in one plot."""

import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/figures/losses.py"))


def write(folder, rows):
    folder.mkdir()
    lines = ["iteration,total_loss,seconds", *(f"{i},{loss},0.1" for i, loss in rows)]
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_of_a_step_that_was_run_twice_the_later_counts(tmp_path):
    # As after a resume from a checkpoint that was older than the last step.
    run = write(tmp_path / "a", [(0, 3.0), (1, 2.0), (2, 9.0), (1, 1.5), (2, 1.0)])
    iterations, losses = TOOL["read_losses"](run)
    np.testing.assert_array_equal(iterations, [0, 1, 2])
    np.testing.assert_array_equal(losses, [3.0, 1.5, 1.0])


def test_picture(tmp_path, capsys):
    runs = [write(tmp_path / n, [(i, 3 / (i + 1)) for i in range(30)]) for n in "ab"]
    out = tmp_path / "losses.png"
    assert TOOL["main"]([f"A={runs[0]}", f"B={runs[1]}", "--out", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.glob("*.png")] == ["losses.png"]
    assert TOOL["main"]([f"A={runs[0]}", "--out", str(tmp_path / "losses.what")]) == 2
    assert "must end in one of" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_of_a_few_iterations_have_their_line_and_label(tmp_path, monkeypatch, steps):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    run = write(tmp_path / "a", [(i, 3.0 - i) for i in range(steps)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TOOL["main"]([f"A={run}", "--out", str(tmp_path / "losses.png")]) == 0
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["A"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [np.mean(3.0 - np.arange(steps))])


def test_bad_input(tmp_path, capsys):
    assert TOOL["main"]([f"A={tmp_path}"]) == 2
    assert f"there is no {tmp_path / 'steps.csv'}" in capsys.readouterr().err
    empty = write(tmp_path / "empty", [])
    assert TOOL["main"]([f"A={empty}"]) == 2
    assert "has no steps" in capsys.readouterr().err
    (empty / "steps.csv").write_text("iteration,total_loss\n1,much\n")
    assert TOOL["main"]([f"A={empty}"]) == 2
    assert "is no record of steps" in capsys.readouterr().err
    assert TOOL["main"]([f"A={empty}", "--out", str(empty / "steps.csv")]) == 2
    with pytest.raises(SystemExit) as stop:
        TOOL["main"]([str(tmp_path)])
    assert stop.value.code == 2
