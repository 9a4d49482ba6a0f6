"""tools/experiments/evidence.py: tables and pictures of a sweep."""

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/experiments/evidence.py"))
main = TOOL["main"]
ACCURACY = {("BN-ReLU", 0.9): 0.5, ("BN-ReLU", 1.0): 0.7, ("EvoNormB0", 1.0): 0.625}


@pytest.fixture
def sweep(tmp_path):
    """A folder with four trials of a sweep, one of which diverged."""
    trials, keys = [], [*ACCURACY, ("EvoNormB0", 0.9)]
    for number, (norm, width) in enumerate(keys):
        accuracy = ACCURACY.get((norm, width))
        record = {"trial": number, "values": {"width": width, "norm": norm}}
        record |= {"status": "finished", "val_accuracy": accuracy} if accuracy else {}
        trials.append({"status": "diverged", **record})
        config = {"model": "mobilenetv2_cifar", "width": width, "norm": norm, "batch_size": 2}
        result = {"config": {**config, "resolution": 32}, "peak_memory_mib": 100.0 + number}
        folder = tmp_path / f"trials/{number:03d}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    search = {"width": [0.9, 1.0], "norm": ["BN-ReLU", "EvoNormB0"]}
    (tmp_path / "sweep.json").write_text(json.dumps({"search": search, "trials": trials}))
    return tmp_path


def test_table(sweep, capsys):
    assert main(["table", str(sweep), "--columns", "width"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| norm | 0.9 | 1.0 |",
        "| --- | --- | --- |",
        "| BN-ReLU | 50.0 | 70.0 |",
        "| EvoNormB0 | diverged | 62.5 |",
    ]


def test_plot(sweep, capsys):
    out = sweep / "plot.png"
    assert main(["plot", str(sweep), "--x", "width", "--out", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_cost_of_folded_models(sweep, capsys):
    out = sweep / "cost.png"
    assert main(["cost", str(sweep), "--out", str(out)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert len(rows) == 3
    assert out.read_bytes()[:4] == b"\x89PNG"
    plain = next(row for row in rows if row[:2] == ["| BN-ReLU", "1.0"])
    before, after = (int(plain[k].replace(",", "")) for k in (2, 3))
    # Of 17,056 channels gamma and beta go, and every convolution gets a bias for each.
    assert (before, after) == (2_236_682, 2_219_626)
    assert float(plain[4]) > float(plain[5])


def test_time_of_a_step(sweep, capsys):
    assert main(["time", str(sweep), "--columns", "width", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(1.00), 100 MiB" in lines[2]
    assert lines[3].startswith("| EvoNormB0 | ")
    assert "103 MiB" in lines[3]


def test_bad_input(sweep, tmp_path, capsys):
    assert main(["table", str(tmp_path / "no"), "--columns", "width"]) == 2
    assert "sweep.json; evonorm sweep writes it" in capsys.readouterr().err
    assert main(["table", str(sweep), "--columns", "lr"]) == 2
    assert "the sweep has no 'lr'; it searches over width, norm" in capsys.readouterr().err
