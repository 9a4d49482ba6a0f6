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


@pytest.fixture
def seeds(tmp_path):
    """``seeds(name, seed, accuracies)``: a folder with trials of one seed at two widths."""

    def make(name, seed, accuracies):
        trials = []
        for number, (width, value) in enumerate(accuracies.items()):
            values = {"width": width, "norm": "FRN", "seed": seed}
            record = {"trial": number, "values": values, "status": "finished"}
            trials.append({**record, "val_accuracy": value})
            folder = tmp_path / name / f"trials/{number:03d}"
            folder.mkdir(parents=True)
            config = {"model": "mobilenetv2_cifar", "width": width, "norm": "FRN"}
            (folder / "result.json").write_text(json.dumps({"config": config}))
        search = {"width": list(accuracies), "norm": ["FRN"], "seed": [seed]}
        text = json.dumps({"search": search, "trials": trials})
        (tmp_path / name / "sweep.json").write_text(text)
        return str(tmp_path / name)

    return make


def test_seeds_and_folders_together(seeds, capsys, tmp_path):
    folders = [seeds("a", 0, {0.1: 0.5, 0.2: 0.6}), seeds("b", 1, {0.1: 0.52, 0.4: 0.7})]
    assert main(["table", *folders, "--columns", "width"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert head == "| norm | 0.1 | 0.2 | 0.4 |"
    assert row == "| FRN | 51.0 ± 1.0 | 60.0 | 70.0 |"
    assert main(["table", *folders, "--columns", "width", "--where", "seed=1"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "| FRN | 52.0 |  | 70.0 |"
    assert main(["cost", *folders, "--where", "width=0.1", "--out", str(tmp_path / "c.png")]) == 0
    (row,) = capsys.readouterr().out.splitlines()[2:-1]
    assert row.startswith("| FRN | 0.1 | ")
    assert row.endswith(" | 51.0 ± 1.0 |")
    assert main(["plot", *folders, "--x", "width", "--out", str(tmp_path / "p.png")]) == 0


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
    """Ratios are to the sweep's first norm, whichever trial ended first."""
    file = sweep / "sweep.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "trials": record["trials"][::-1]}))
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
    assert main(["table", str(sweep), "--columns", "width", "--where", "norm=BN"]) == 2
    assert "--where norm=BN: the sweep has BN-ReLU, EvoNormB0" in capsys.readouterr().err
    other = tmp_path / "other"
    (other / "trials/000").mkdir(parents=True)
    (other / "trials/000/result.json").write_text("{}")
    text = json.dumps({"search": {"lr": [1]}, "trials": [{"trial": 0, "values": {"lr": 1}}]})
    (other / "sweep.json").write_text(text)
    assert main(["table", str(sweep), str(other), "--columns", "width"]) == 2
    assert "searches over lr, " in capsys.readouterr().err
