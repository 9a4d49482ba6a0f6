"""What a search shows: numbers by hand, tables, pictures, files of layers."""

import json

import pytest
import torch

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.registry import get_norm_act
from evonorm_plugins.search import report
from evonorm_plugins.search.figures import FIGURES
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
        lines = report.summary(report.numbers(store, cpus=2)).splitlines()
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
        assert report.summary(report.numbers(store)) == "no results yet"


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


def test_top(path, search):
    status, out, _ = search("top", path, "--count", "2")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["number", "mean", "a", "b", "formula"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["2", "0.6750", "0.9000", "0.4500"],
        ["3", "0.5250", "0.7000", "0.3500"],
    ]


def test_show(path, search):
    status, out, _ = search("show", path)
    assert status == 0
    assert out.startswith("7 candidates, 6 of them different, 1 more handed")
    status, out, _ = search("show", path, "2")
    assert status == 0
    for part in ("candidate 2: passed", "exp(exp(exp(x)))", "mutated from candidate 0", "a 0.9000"):
        assert part in out
    assert "candidate 1: quality" in search("show", path, "1")[1]
    assert "equal to candidate 0" in search("show", path, "5")[1]
    assert "error: ValueError: no" in search("show", path, "6")[1]


def test_watch(path, search):
    """Candidate 2, the best, was mutated from 0; it beats all others on both anchors."""
    status, out, err = search("watch", path, "--once")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [str(path), "7 candidates, 6 of them different, 1 more handed out"]
    assert any(line.endswith(" s ago") for line in lines)

    def below(title):
        start = next(k for k, line in enumerate(lines) if line.startswith(title)) + 2
        end = lines.index("", start) if "" in lines[start:] else len(lines)
        return [line.split()[0] for line in lines[start:end]]

    assert below("the best 4:") == ["2", "3", "0", "4"]
    assert below("the front, 1 ") == ["2"]
    assert below("the best one and its ancestors") == ["2", "0"]


def test_watching_goes_on_until_it_is_stopped(path, search, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    status, out, err = search("watch", path, "--seconds", "0.5")
    assert (status, err, looks) == (0, "", [0.5] * 3)
    assert out.count("7 candidates, ") == 3
    assert "\x1b" not in out  # no terminal


def test_an_empty_search_can_be_watched(tmp_path, search):
    with Store.create(tmp_path / "new.sqlite", {}):
        pass
    assert search("watch", tmp_path / "new.sqlite", "--once")[1].endswith("no results yet\n")


def test_json(path, search):
    status, out, _ = search("top", path, "--count", "2", "--json")
    assert status == 0
    best = json.loads(out)
    assert [c["number"] for c in best] == [2, 3]
    assert [c["score"] for c in best] == pytest.approx([0.675, 0.525])
    assert Graph.from_json(best[0]["graph"]) == candidates(path)[2].graph
    assert json.loads(search("show", path, "5", "--json")[1])["same_as"] == 0
    status, out, _ = search("show", path, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["outcomes"]["passed"] == {"results": 5, "different": 4, "seconds": 360.0}
    assert found["core_hours"] == pytest.approx(780 / 3600)
    assert found["options"] == {"cpus_per_worker": 2}
    assert [(s["stage"], s["came"]) for s in found["stages"]] == [("training", 4)]
    assert found["whole_trainings"] == pytest.approx(540 / 390)


def test_an_exported_layer_is_a_norm(path, tmp_path, search):
    layer = tmp_path / "layers/found.json"
    assert search("export", path, "6", layer)[0] == 0
    x = torch.randn(2, 32, 4, 4)
    expected = get_norm_act("EvoNormB0", 32)(x)
    torch.testing.assert_close(get_norm_act(str(layer), 32)(x), expected)
    assert json.loads(layer.read_text())["about"]["candidate"] == 6


@pytest.mark.parametrize("figure", sorted(FIGURES))
def test_pictures(path, tmp_path, figure, search):
    from PIL import Image

    out = tmp_path / "pictures" / f"{figure}.png"
    command = ["plot", figure, f"one={path}", f"other={path}", "--out", out]
    assert search(*command)[0] == 0
    image = Image.open(out).convert("L")
    assert min(image.size) > 300
    assert len(image.getcolors()) > 20
    if figure == "top":  # a picture of its own is drawn anew
        assert search(*command)[0] == 0


@pytest.fixture
def baseline(tmp_path):
    """``baseline(**values)``: a file as ``evonorm search try --json`` prints it, argument first."""

    def write(**values):
        found = {"task": {"anchors": ["a", "b"]}, "scores": {"a": 0.95, "b": 0.55}}
        found["details"] = {"quality": {"a": 0.35, "b": 0.25}}
        file = tmp_path / "bn.json"
        file.write_text(json.dumps({**found, **values}))
        return ["--baseline", f"BN-ReLU={file}"]

    return write


def drawn(monkeypatch, search, *command):
    """The panels of the figure that a command draws."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    assert search(*command)[0] == 0
    return figures[0].axes


@pytest.mark.parametrize(
    ("figure", "axis", "expected"),
    [("top", 1, [0.75]), ("histogram", 0, [0.95, 0.55]), ("quality", 0, [0.35])],
)
def test_a_baseline_is_a_dashed_line(
    path, tmp_path, monkeypatch, search, baseline, figure, axis, expected
):
    command = ["plot", figure, f"one={path}", *baseline(), "--out", tmp_path / "x.png"]
    panels = drawn(monkeypatch, search, *command)
    dashed = [line for panel in panels for line in panel.lines if line.get_linestyle() == "--"]
    assert [line.get_label() for line in dashed] == ["BN-ReLU"] * len(expected)
    assert [line.get_data()[axis][0] for line in dashed] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("figure", "values", "message"),
    [
        ("top", {"scores": {}}, "has no accuracies of whole trainings of ['a', 'b']"),
        ("histogram", {"scores": {"a": 0.5}}, "has no accuracies of whole trainings of ['a', 'b']"),
        ("quality", {"details": {}}, "has no accuracies at the quality filter of ['a', 'b']"),
        ("top", {"task": None}, "holds nothing that `evonorm search try --json` printed (TypeErr"),
        ("top", {"task": {"anchors": ["a"]}}, "was measured with anchors=['a'] (not ['a', 'b'])"),
        ("top", {"task": {"anchors": ["a", "b"], "lr": 1}}, "was measured with lr=1 (not 0.1) of"),
    ],
)
def test_baselines_that_do_not_fit(path, tmp_path, search, baseline, figure, values, message):
    with Store.create(tmp_path / "other.sqlite", {"anchors": ["a", "b"], "lr": 0.1}) as store:
        store.propose(Candidate(0, KNOWN["EvoNormB0"]))
        store.record(0, "passed", scores={"a": 0.5, "b": 0.5})
    other = tmp_path / "other.sqlite"
    command = ["plot", figure, f"a={other}", *baseline(**values), "--out", tmp_path / "x.png"]
    status, _, err = search(*command)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "x.png").exists()


def test_what_is_there_is_not_replaced(path, tmp_path, search):
    """Inputs never, files of others with --force alone, layer files of our own at once."""
    other = tmp_path / "gt.json"
    other.write_text('{"images": []}')
    picture = tmp_path / "photo.png"
    picture.write_bytes(b"\x89PNG of somebody")
    layer = tmp_path / "layer.json"
    before = path.read_bytes()
    plot = ["plot", "top", f"a={path}", "--out"]
    for command, name in (
        (["layer", "tanh(x)", other], "LAYER.json"),
        (["export", path, "2", other], "LAYER.json"),
        ([*plot, picture], "--out"),
    ):
        status, _, err = search(*command)
        assert status == 2
        assert err.startswith(f"error: {name} {command[-1]} is there already, and not of this")
    assert other.read_text() == '{"images": []}'
    assert picture.read_bytes() == b"\x89PNG of somebody"
    for command in (["export", path, "2", path, "--force"], [*plot, path, "--force"]):
        status, _, err = search(*command)
        assert (status, err.count("\n")) == (2, 1)
        assert f"{path} is an input, too: name another file" in err
    assert path.read_bytes() == before
    assert search("layer", "exp(x)", layer)[0] == search("layer", "tanh(x)", layer)[0] == 0
    assert Graph.load(layer) == Graph.of(("tanh", "x"))
    assert search("layer", "tanh(x)", other, "--force")[0] == 0
    assert Graph.load(other) == Graph.of(("tanh", "x"))
    status, _, err = search("layer", "tanh(x)", tmp_path / "gt.json/x.json")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "PATH", "12"], "there is no candidate 12 in PATH"),
        (["show", "PATH", "-1"], "there is no candidate -1 in PATH"),
        (["show", "PATH", "9" * 30], f"there is no candidate {'9' * 30} in PATH"),
        (["export", "PATH", "12", "x.json"], "there is no candidate 12 in PATH"),
        (["watch", "none.sqlite"], "there is no search in none.sqlite"),
        (["top", "none.sqlite"], "there is no search in none.sqlite"),
        (["top", "."], ". is a folder, not the file of a search"),
        (["top", "text"], "text is no search's file or is damaged: file is not a database"),
        (["plot", "top", "PATH", "--out", "x.png"], "'PATH' is not of the form LABEL=STORE"),
        (["plot", "top", "=PATH", "--out", "x.png"], "'=PATH' is not of the form LABEL=STORE"),
        (["plot", "top", "a=PATH", "a=PATH", "--out", "x.png"], "the label 'a' is there twice"),
        (["plot", "top", "a=PATH", "--out", "."], "--out . is a folder, not a file"),
        (
            ["plot", "top", "a=PATH", "--baseline", "b=no.json", "--out", "x.png"],
            "--baseline no.json holds nothing that `evonorm search try --json` printed (FileNot",
        ),
        (
            ["plot", "top", "a=PATH", "--baseline", "text", "--out", "x.png"],
            "'text' is not of the form LABEL=FILE",
        ),
        (
            ["rerank", "PATH", "--config", "no.yaml", "--out", "x"],
            "no.yaml",
        ),
        (
            ["rerank", "PATH", "--config", "c.yaml", "--out", "text"],
            "TMP/text is a file, not a folder",
        ),
        (["simulate", "--store", "PATH"], "PATH is there already: name another file for a new"),
        (["run", "--config", "no.yaml"], "no.yaml"),
        (["run", "--config", "."], " is a folder, not a"),
    ],
)
def test_bad_input(path, tmp_path, monkeypatch, search, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("a text " * 1000)
    (tmp_path / "c.yaml").write_text("model: mini_inception\n")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = search(*[part.replace("PATH", str(path)) for part in command])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message.replace("PATH", str(path)).replace("TMP", str(tmp_path)) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["simulate", "--seconds", "0"], "argument --seconds: 0 must be a number above 0"),
        (["simulate", "--seconds", "nan"], "argument --seconds: nan must be a number above 0"),
        (["simulate", "--seconds", "inf"], "argument --seconds: inf must be a number above 0"),
        (["simulate", "--workers", "-3"], "argument --workers: -3 must be at least 1"),
        (["simulate", "--candidates", "1e3"], "argument --candidates: invalid int value: '1e3'"),
        (["top", "PATH", "--count", "0"], "argument --count: 0 must be at least 1"),
        (["show", "PATH", "one"], "argument NUMBER: invalid int value: 'one'"),
        (["plot", "pie", "a=PATH", "--out", "x.png"], "argument FIGURE: invalid choice: 'pie'"),
        (["try", "x"], "the following arguments are required: --config"),
        (["tops", "PATH"], "argument COMMAND: invalid choice: 'tops'"),
    ],
)
def test_options_that_make_no_sense(path, search, command, message):
    status, out, err = search(*[part.replace("PATH", str(path)) for part in command])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")


def test_nothing_to_plot(tmp_path, search):
    with Store.create(tmp_path / "new.sqlite", {}):
        pass
    new = tmp_path / "new.sqlite"
    status, _, err = search("plot", "histogram", f"a={new}", "--out", tmp_path / "x.png")
    assert status == 2
    assert "has passed yet" in err
    assert search("top", new)[:2] == (0, "no candidate has passed yet\n")
