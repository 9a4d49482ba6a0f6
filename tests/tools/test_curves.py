"""tools/figures/curves.py: training and validation curves of several runs in one picture."""

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/figures/curves.py"))


def write(folder, shift=0.0):
    """A run of two epochs of 10 updates, a record after every second one."""
    folder.mkdir(parents=True)
    records = []
    for step in range(2, 21, 2):
        records.append({"step": step, "loss": shift + 1 / step, "accuracy": step / 40, "lr": 0.1})
        if step % 10 == 0:
            validation = {"val_loss": shift + 2 / step, "val_accuracy": shift + step / 50}
            records.append({"step": step, "epoch": step / 10, "train_loss": 9.0, **validation})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def drawn(monkeypatch, *arguments):
    """The panels of the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    assert TOOL["main"](list(map(str, arguments))) == 0
    return figures[0]


def test_curves(tmp_path, monkeypatch):
    runs = [f"{n}={write(tmp_path / n, shift)}" for n, shift in (("A", 0.0), ("B", 0.25))]
    out = tmp_path / "curves.png"
    figure = drawn(monkeypatch, *runs, "--out", out, "--window", 2)
    training, validation = figure.axes[0].lines[0], figure.axes[1].lines[1]
    assert training.get_xdata() == pytest.approx([0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2])
    assert training.get_ydata()[0] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert list(validation.get_xdata()) == [1, 2]
    assert validation.get_ydata() == pytest.approx([0.45, 0.35])
    assert figure.axes[3].lines[0].get_ydata() == pytest.approx([0.2, 0.4])
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["A (40.0%)", "B (65.0%)"]
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.glob("*.png")] == ["curves.png"]


def test_the_trials_of_a_sweep(tmp_path, monkeypatch):
    values = [
        {"norm": "B0", "groups": 8},
        {"norm": "BN", "groups": 16},
        {"norm": "BN", "groups": 8},
    ]
    for number in range(3):
        write(tmp_path / f"trials/{number:03d}")
    trials = [{"trial": n, "values": v, "status": "finished"} for n, v in enumerate(values)]
    search = {"norm": ["BN", "B0"], "groups": [8, 16]}
    (tmp_path / "sweep.json").write_text(json.dumps({"search": search, "trials": trials}))
    (legend,) = drawn(monkeypatch, tmp_path, "--out", tmp_path / "x.png").legends
    labels = [t.get_text().split(" (")[0] for t in legend.get_texts()]
    assert labels == ["BN, 8", "BN, 16", "B0, 8"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["A=TMP"], "TMP/metrics.jsonl is not there or has no validation"),
        (["TMP"], "TMP is neither LABEL=DIR nor the folder of a sweep (FileNotFoundError)"),
        (["TMP", "TMP"], "'TMP' is not of the form LABEL=DIR"),
        (["A=x", "A=y"], "the label 'A' is there twice"),
        ([f"{n}=x" for n in range(22)], "22 runs are too many for one picture: at most 21"),
    ],
)
def test_bad_input(tmp_path, capsys, runs, message):
    assert TOOL["main"]([run.replace("TMP", str(tmp_path)) for run in runs]) == 2
    assert message.replace("TMP", str(tmp_path)) in capsys.readouterr().err
