"""tools/experiments/gan.py: small files of runs, tables and a picture of them."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

pytest.importorskip("matplotlib")
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/experiments/gan.py"))
main = TOOL["main"]
OWN = "own.pt2@01234567"


def record(name, distance, *, sampled=True, seed=0, mode="standing statistics over 2 passes"):
    scores = {f"fid[{OWN}]": distance, f"inception_score_mean[{OWN}]": 5.0}
    sampling = {"ema": True, "mode": mode, "truncation": None, "classes": "uniform"}
    return {
        "kind": "gan",
        "name": name,
        "runs": [{"sampling_seed": 0, "scores": scores | {f"recall_fraction[{OWN}]": 0.5}}],
        "protocol": {"n_fake": 10, **(sampling if sampled else dict.fromkeys(sampling))},
        "input": {"fake": {"training_seed": seed} if sampled else {}},
    }


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Folders of three runs, one of which lost its best and ended early; the floor's record."""
    monkeypatch.chdir(tmp_path)
    made = (("BN-ReLU", 0, (9.0, 6.0)), ("BN-ReLU", 1, (4.0, 40.0)), ("GN-ReLU(groups=2)", 0, ()))
    for norm, seed, distances in made:
        folder = Path("out", norm, f"seed{seed}")
        folder.mkdir(parents=True)
        steps = 10 * max(2, len(distances)) if seed == 0 else 20
        config = {"norm": norm, "seed": seed, "steps": 40 if seed else steps}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        lines = [
            {"step": s, "d_loss": 1.0, "g_loss": 0.1 * s, "d_accuracy_real": 0.5,
             "d_accuracy_fake": None, "d_grad_norm": float(s), "g_grad_norm": 2.0}
            for s in range(1, steps + 1)
        ]  # fmt: skip
        lines += [
            {"step": 10 * (k + 1), "frechet_distance": d, "class_score": 3.0 + k}
            for k, d in enumerate(distances)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
        if distances:
            kept = record(norm, min(distances), seed=seed)
            (folder / "metrics.json").write_text(json.dumps(kept))
    Path("floor.json").write_text(json.dumps(record("test images", 1.0, sampled=False)))
    return [str(p) for p in sorted(Path("out").glob("*/seed*"))]


def test_tables_and_picture_from_small_files(runs, capsys):
    assert main(["collect", *runs, "--floor", "floor.json", "--out", "all", "--figures", "f"]) == 0
    said = capsys.readouterr()
    assert said.out == "all/curves.json\n"
    assert said.err == "GN-ReLU_seed0: out/GN-ReLU(groups=2)/seed0/metrics.json is not there\n"
    kept = json.loads(Path("all/curves.json").read_text())["runs"]
    assert [r["scores"] for r in kept[:2]] == [
        [[10, 9.0, 3.0], [20, 6.0, 4.0]],
        [[10, 4.0, 3.0], [20, 40.0, 4.0]],
    ]
    assert kept[0]["means"]["d_accuracy_fake"] == [None] * 20
    assert main(["report", "all", "--figures", "f"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| layer | runs | seeds | Fréchet distance (median/best) | class")
    assert lines[2] == "| BN-ReLU | 2 | training 0, 1 | 5.00/4.00 | 5.00/5.00 | 0.500/0.500 |"
    assert lines[3] == "| test images | 1 | - | 1.00/1.00 | 5.00/5.00 | 0.500/0.500 |"
    assert "| BN-ReLU | 0 | 20 | 6.00 | 20 | 6.00 | 10.5, 20 | 2, 2 |" in lines
    lost = "| BN-ReLU | 1 | 20 of 40 | 4.00 | 10 | 40.00 (lost) | 10.5, 20 | 2, 2 |"
    assert lost in lines
    assert "| GN-ReLU(groups=2) | 0 | 20 | - | - | - | 10.5, 20 | 2, 2 |" in lines
    assert Path("f/gan_curves.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input(runs, capsys):
    assert main(["collect", "out", "--out", "all"]) == 2
    assert "out is no run of `evonorm gan train`" in capsys.readouterr().err
    other = Path(runs[1], "metrics.json")
    other.write_text(json.dumps(record("BN-ReLU", 4.0, mode="moving statistics")))
    assert main(["collect", *runs, "--floor", "floor.json", "--out", "all"]) == 2
    assert "measured in different ways: mode 'standing" in capsys.readouterr().err
    assert not Path("all").exists()
    assert main(["report", "nothing"]) == 2
    assert "nothing/curves.json" in capsys.readouterr().err
