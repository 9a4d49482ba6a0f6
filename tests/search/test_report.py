"""What a search shows: numbers by hand, tables, pictures, files of layers."""

import json

import pytest
import torch

from evonorm_plugins.cli.search import main
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.registry import get_norm_act
from evonorm_plugins.search import report
from evonorm_plugins.search.store import Candidate, Store

SCORES = [0.5, None, 0.9, 0.7, 0.2]  # of candidates 0 to 4; None is refused


@pytest.fixture
def path(tmp_path):
    """A store with the results of :data:`SCORES`, an equal one, a failed one and one to come."""
    path = tmp_path / "search.sqlite"
    with Store.create(path, {"cpus_per_worker": 2}) as store:
        for number, score in enumerate(SCORES):
            graph = Graph([("exp", 0)] + [("exp", 4 + i) for i in range(number)])
            store.propose(Candidate(number, graph, parent=0 if number == 2 else None))
            if score is None:
                found = {"filter": "quality", "details": {"quality": {"a": 0.1}}}
                store.record(number, "rejected", seconds={"quality": 30.0}, cost=30.0, **found)
            else:
                scores = {"a": score, "b": score / 2}
                seconds = {"quality": 30.0, "training": 60.0}
                store.record(number, "passed", scores=scores, seconds=seconds, cost=90.0)
        store.propose(Candidate(5, Graph([("exp", 0)])))
        store.record(5, "passed", scores={"a": 0.5, "b": 0.25}, same_as=0)
        store.propose(Candidate(6, KNOWN["EvoNormB0"]))
        store.record(6, "failed", error="ValueError: no")
        store.propose(Candidate(7, KNOWN["EvoNormS0"]))
    return path


def candidates(path):
    with Store(path) as store:
        return store.finished()


def test_summary(path):
    with Store(path) as store:
        lines = report.summary(store, cpus=2).splitlines()
    assert lines[0] == "7 candidates, 6 of them different, 1 more handed out"
    assert [line.split() for line in lines[2:5]] == [
        ["quality", "1", "1", "16.7%", "30", "s"],
        ["passed", "5", "4", "66.7%", "360", "s"],
        ["failed", "1", "1", "16.7%", "0", "s"],
    ]
    # 390 s of two CPUs are 0.2167 hours.
    assert (
        lines[5] == "0.22 core hours: 28 different candidates, 18.5 of them passed, in a core hour"
    )
    # Six were tried, one of them failed at once; a whole training takes 90 s.
    without = "training all of them to the end, without filters, would take 1.4 times as long"
    assert lines[6] == without
    assert lines[7] == "time of workers: quality 38.5%, training 61.5%"


def test_an_empty_search(tmp_path):
    with Store.create(tmp_path / "new.sqlite", {}) as store:
        assert report.summary(store) == "no results yet"


def test_progress_of_the_top_by_hand(path):
    curve = report.progress_of_top(candidates(path), count=2)
    assert [k for k, *_ in curve] == [1, 2, 3, 4, 5, 6]
    means = [0.375, 0.375, 0.525, 0.6, 0.6, 0.6]
    assert [mean for _, mean, *_ in curve] == pytest.approx(means)
    assert [best for *_, best in curve] == [1, 1, 2, 2, 2, 2]
    assert curve[2][2] == pytest.approx(0.15)  # of 0.375 and 0.675


def test_rank_correlation():
    assert report.rank_correlation([1, 2, 3], [10, 100, 50]) == pytest.approx(0.5)
    assert report.rank_correlation([1, 1], [2, 3]) is None


def test_top(path, capsys):
    assert main(["top", str(path), "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["number", "mean", "a", "b", "formula"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["2", "0.6750", "0.9000", "0.4500"],
        ["3", "0.5250", "0.7000", "0.3500"],
    ]


def test_show(path, capsys):
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out.startswith("7 candidates, 6 of them different, 1 more handed")
    assert main(["show", str(path), "2"]) == 0
    out = capsys.readouterr().out
    for part in ("candidate 2: passed", "exp(exp(exp(x)))", "mutated from candidate 0", "a 0.9000"):
        assert part in out
    main(["show", str(path), "1"])
    assert "candidate 1: quality" in capsys.readouterr().out
    main(["show", str(path), "5"])
    assert "equal to candidate 0" in capsys.readouterr().out
    main(["show", str(path), "6"])
    assert "error: ValueError: no" in capsys.readouterr().out


def test_json(path, capsys):
    assert main(["top", str(path), "--count", "2", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert [c["number"] for c in best] == [2, 3]
    assert [c["score"] for c in best] == pytest.approx([0.675, 0.525])
    assert Graph.from_json(best[0]["graph"]) == candidates(path)[2].graph
    assert main(["show", str(path), "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same_as"] == 0
    assert main(["show", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcomes"]["passed"] == {"results": 5, "different": 4, "seconds": 360.0}
    assert found["core_hours"] == pytest.approx(780 / 3600)
    assert found["whole_trainings"] == pytest.approx(540 / 390)


def test_an_exported_layer_is_a_norm(path, tmp_path):
    layer = tmp_path / "layers/found.json"
    assert main(["export", str(path), "6", str(layer)]) == 0
    x = torch.randn(2, 32, 4, 4)
    expected = get_norm_act("EvoNormB0", 32)(x)
    torch.testing.assert_close(get_norm_act(str(layer), 32)(x), expected)
    assert json.loads(layer.read_text())["about"]["candidate"] == 6


@pytest.mark.parametrize("figure", sorted(report.FIGURES))
def test_pictures(path, tmp_path, figure):
    from PIL import Image

    out = tmp_path / "pictures" / f"{figure}.png"
    assert main(["plot", figure, f"one={path}", f"other={path}", "--out", str(out)]) == 0
    image = Image.open(out).convert("L")
    assert min(image.size) > 300
    assert len(image.getcolors()) > 20


def test_reranking_writes_a_sweep(path, tmp_path, monkeypatch):
    from evonorm_plugins.classification import sweep

    given = []

    def run(file, overrides, *, resume, address):
        given.append((sweep.load_sweep(file, overrides), resume, address))
        return 0

    monkeypatch.setattr(sweep, "main", run)
    config = tmp_path / "model.yaml"
    config.write_text("model: mini_inception\nepochs: 1\nholdout: 10\ndata: images\n")
    command = ["rerank", str(path), "--config", str(config), "--out", str(tmp_path / "again")]
    assert main([*command, "--count", "2", "--norms", "BN-ReLU", "--resume"]) == 0
    found, resume, address = given[0]
    layers = [str(tmp_path / "again/layers" / f"{n}.json") for n in (2, 3)]
    assert found.search["norm"] == [*layers, "BN-ReLU"]
    assert found.base["model"] == "mini_inception"
    assert (resume, address) == (True, None)
    assert Graph.load(layers[0]).digest() == candidates(path)[2].graph.digest()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "PATH", "12"], "there is no candidate 12 in PATH"),
        (["export", "PATH", "12", "x.json"], "there is no candidate 12 in PATH"),
        (["top", "none.sqlite"], "there is no search in none.sqlite"),
        (["plot", "top", "PATH", "--out", "x.png"], "'PATH' is not of the form LABEL=STORE"),
        (
            ["rerank", "PATH", "--config", "no.yaml", "--out", "x"],
            "there is no config file no.yaml",
        ),
        (["simulate", "--seconds", "0"], "--seconds 0 must be above 0"),
        (
            ["run", "--config", "no.yaml"],
            "'no.yaml' is no file and no search config; known: B, S, random, small",
        ),
    ],
)
def test_bad_input(path, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert main([part.replace("PATH", str(path)) for part in command]) == 2
    assert capsys.readouterr().err == f"error: {message.replace('PATH', str(path))}\n"
    assert not list(tmp_path.glob("x*"))


def test_nothing_to_plot(tmp_path, capsys):
    with Store.create(tmp_path / "new.sqlite", {}):
        pass
    command = [
        "plot",
        "histogram",
        f"a={tmp_path / 'new.sqlite'}",
        "--out",
        str(tmp_path / "x.png"),
    ]
    assert main(command) == 2
    assert "has passed yet" in capsys.readouterr().err
    assert main(["top", str(tmp_path / "new.sqlite")]) == 0
    assert capsys.readouterr().out == "no candidate has passed yet\n"


def test_a_damaged_store(tmp_path, capsys):
    (tmp_path / "text.sqlite").write_text("a text " * 1000)
    assert main(["top", str(tmp_path / "text.sqlite")]) == 1
    assert "is no search's file or is damaged" in capsys.readouterr().err
