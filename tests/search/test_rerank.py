"""Reranking: the sweep that it writes, the order that comes of it, the layers that are kept."""

import json

import pytest

from evonorm_plugins.classification.sweep import ray_tune, report
from evonorm_plugins.layers.candidates import CANDIDATES
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.search import ranking
from evonorm_plugins.search.store import Candidate, Store

FORMULAS = [("tanh", "x"), ("exp", "x"), ("square", "x"), ("sigmoid", "x"), ("tanh", "x")]
SCORES = [0.5, 0.9, 0.7, None, 0.5]  # None is refused; the last one is equal to the first


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "search.sqlite"
    with Store.create(path, {}) as store:
        for number, (formula, score) in enumerate(zip(FORMULAS, SCORES, strict=True)):
            store.propose(Candidate(number, Graph.of(formula)))
            if score is None:
                store.record(number, "rejected", filter="quality")
            else:
                same = {"same_as": 0} if number == 4 else {}
                store.record(number, "passed", scores={"a": score}, **same)
    return path


@pytest.fixture
def configs(tmp_path):
    """Two models' configs, as options, with rates of their own."""
    (tmp_path / "images").mkdir()
    given = []
    for model, lr in (("mini_inception", 0.1), ("resnet8_cifar", 0.3)):
        path = tmp_path / f"{model}.yaml"
        path.write_text(f"model: {model}\nlr: {lr}\nepochs: 1\ndata: {tmp_path}/images\n")
        path.write_text(f"{path.read_text()}val_data: {tmp_path}/no\noutput_dir: {model}\n")
        given += ["--config", path]
    return given


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """``trained(accuracy)``: what trainings give from now on; returns the list of their configs.

    ``accuracy(config)`` is a number, None (diverged), or "failed".
    """
    configs = []

    def use(accuracy=lambda config: 0.5):
        def run(given, train, sweep, progress, ended):
            for number, config in given.items():
                configs.append(config)
                found = accuracy(config)
                outcome = {"status": "finished", "seconds": 1.0, "val_accuracy": found}
                if not isinstance(found, float):
                    outcome = {"status": found or "diverged", "seconds": 1.0, "error": "why"}
                ended(number, {"val_loss": 1.0, "epoch": 1, **outcome})

        monkeypatch.setattr(ray_tune, "run_trials", run)
        return configs

    monkeypatch.setattr(report, "plot", lambda *_: None)
    monkeypatch.setattr(ray_tune, "start", lambda sweep, address, on_hang: None)
    monkeypatch.chdir(tmp_path)
    return use


def of(accuracies):
    """``accuracy(config)`` by what the layer's name ends in and the model's begins with."""

    def accuracy(config):
        layer = config["norm"].rpartition("/")[2].removesuffix(".json")
        found = accuracies[layer]
        return found[config["model"].startswith("resnet")] if isinstance(found, tuple) else found

    return accuracy


def test_the_best_of_a_search_on_several_models(store, configs, trained, tmp_path, search):
    """Ranked by the mean, on a share held out of the training set; the best are kept."""
    accuracies = {"0": (0.6, 0.4), "1": (0.9, 0.05), "2": (0.5, 0.7), "BN-ReLU": 0.8}
    configs_of_trials = trained(of(accuracies))
    out = tmp_path / "again"
    command = ["rerank", store, *configs, "--out", out, "--count", "3", "--keep", "2"]
    command += ["--norms", "BN-ReLU", "holdout=10%", "batch_size=4"]
    status, printed, err = search(*command)
    assert status == 0, err
    rows = [line.split()[:6] for line in printed.splitlines()]
    assert rows[0] == ["rank", "layer", "mean", "mini_inception", "resnet8_cifar", "not"]
    assert [row[:5] for row in rows[1:]] == [
        ["1", "BN-ReLU", "80.0", "80.0", "80.0"],
        ["2", "layers/2.json", "60.0", "50.0", "70.0"],
        ["3", "layers/0.json", "50.0", "60.0", "40.0"],
        ["4", "layers/1.json", "47.5", "90.0", "5.0"],
    ]
    assert len(configs_of_trials) == 8
    for config in configs_of_trials:
        assert (config["val_data"], config["holdout"], config["batch_size"]) == ("", "10%", 4)
        assert config["lr"] == {"mini_inception": 0.1, "resnet8_cifar": 0.3}[config["model"]]
    kept = sorted((out / "top").iterdir())
    assert [Graph.load(path) for path in kept] == [Graph.of(FORMULAS[k]) for k in (2, 0)]
    assert json.loads(kept[0].read_text())["about"]["candidate"] == 2
    assert f"kept {out}/layers/2.json: NORM: {kept[0]}" in err
    # Once more, from the folder; and a change of what is kept needs no training.
    assert search("ranking", out)[:2] == (0, printed)
    assert search(*command, "--resume", "--keep", "1")[0] == 0
    assert [path.name for path in (out / "top").iterdir()] == ["1.json"]
    assert len(configs_of_trials) == 8


def test_layers_by_name_file_and_formula(configs, trained, tmp_path, search):
    """Equal ones once; a registered layer is trained by its name."""
    configs_of_trials = trained(lambda config: 0.1 * (config["seed"] + 1))
    KNOWN["Candidate-B4"].save(tmp_path / "found.json")
    command = ["rerank", *configs[:2], "--out", "new", "--seeds", "0,2", "--norms", "evonorm-b0"]
    command += ["--layers", "Candidate-B6", "candidate_b8", "found.json", "tanh(x)", "holdout=2"]
    status, out, err = search(*command, "--json")
    assert status == 0, err
    layer = f"{tmp_path}/new/layers/layer4.json"
    found = json.loads(out)
    assert {row["norm"] for row in found} == {"EvoNormB0", "Candidate-B4", layer}
    assert Graph.load(layer) == Graph.of(("tanh", "x"))
    assert {config["seed"] for config in configs_of_trials} == {0, 2}
    for row in found:
        assert row["mean"] == pytest.approx(0.2)
        assert row["deviation"] == pytest.approx(0.1)
        assert row["scores"] == {"accuracy": pytest.approx(0.2)}
    assert [row["rank"] for row in found] == [1, 2, 3]
    assert "tanh(x)" in [row["formula"] for row in found]


def test_layers_that_diverge_come_last_and_are_not_kept(store, configs, trained, tmp_path, search):
    trained(of({"0": 0.2, "1": (0.9, None), "2": 0.3}))
    status, out, _ = search("rerank", store, *configs, "--out", "new", "holdout=5")
    assert status == 0
    last = out.splitlines()[-1].split()
    assert last == ["layers/1.json", "90.0", "1", "exp(x)"]
    assert len(list((tmp_path / "new/top").iterdir())) == 2


def test_what_failed_runs_again(store, configs, trained, search):
    command = ["rerank", store, *configs[:2], "--out", "new", "holdout=5"]
    trained(of({"0": 0.2, "1": "failed", "2": 0.3}))
    status, _, err = search(*command)
    assert status == 1
    assert "1 trainings failed: --resume runs them again" in err
    again = trained(of({"1": 0.4}))
    assert search(*command, "--resume")[0] == 0
    assert len(again) == 4


def test_going_on(store, configs, trained, tmp_path, search):
    """A sweep that is there is not replaced; one that never began is."""
    command = ["rerank", store, *configs, "--out", "new", "holdout=5"]
    (tmp_path / "images").rmdir()
    trained()
    assert f"there is no data='{tmp_path}/images'" in search(*command)[2]
    (tmp_path / "images").mkdir()
    assert search(*command)[0] == 0
    kept = (tmp_path / "new/sweep.yaml").read_bytes()
    out = tmp_path / "new"
    assert f"--out {out} is not empty: go on with the sweep in it" in search(*command)[2]
    status, _, err = search(*command, "--norms", "GN-ReLU", "--resume")
    assert status == 2
    assert err.endswith(f"it goes on with: evonorm sweep --resume --config {out}/sweep.yaml\n")
    assert (tmp_path / "new/sweep.yaml").read_bytes() == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["STORE", "--layers", "tanh(x)"], "give the file of a search, or --layers with names"),
        ([], "give the file of a search, or --layers with names"),
        (["--layers", "relu(x)"], "unknown function 'relu'"),
        (["--layers", "x", "--count", "3"], "--count 3 is of a search's layers, not of --layers"),
        (["STORE", "--norms", "EvoNormS9"], "EvoNormS9"),
        (["STORE", "norm=BN-ReLU"], "norm=BN-ReLU is what is reranked: name other layers as"),
        (["STORE", "learning=3"], "there is no option 'learning'"),
        (["STORE", "holdout=110%"], "holdout='110%' is not a number, or a share of all"),
        (["STORE", "tanh(x)"], "'tanh(x)' is not of the form key=value"),
        (["STORE", "--config", "CONFIG"], "CONFIG differs from another one in nothing but its"),
        (["STORE", "--seeds", "0,0"], "'0,0' is not a list of different seeds"),
    ],
)
def test_bad_input(store, configs, tmp_path, trained, search, arguments, message):
    trained()
    before = sorted(tmp_path.rglob("*"))
    put = {"STORE": str(store), "CONFIG": str(configs[1])}
    arguments = [put.get(text, text) for text in arguments]
    status, out, err = search("rerank", *arguments, *configs, "--out", "new")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert message.replace("CONFIG", str(configs[1])) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_no_folder_of_a_sweep(tmp_path, search):
    assert search("ranking", tmp_path)[0] == 2
    (tmp_path / "sweep.json").write_text('{"search": {"lr": [1]}, "trials": []}')
    status, _, err = search("ranking", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "sweep.json is no record of a sweep over norms" in err


def test_a_sweep_that_runs():
    """Only seeds that every model has count; a layer without them has no rank yet."""
    search = {"norm": ["A", "B"], "model": ["x", "y"], "seed": [0, 1]}
    done = [("A", "x", 0, 0.2), ("A", "y", 0, 0.4), ("A", "x", 1, 0.8), ("B", "x", 0, 0.9)]
    trials = [
        {"values": {"norm": n, "model": m, "seed": s}, "status": "finished", "val_accuracy": a}
        for n, m, s, a in done
    ]
    a, b = ranking.ranking(search, trials)
    assert (a.norm, a.mean, a.deviation) == ("A", pytest.approx(0.3), None)
    assert a.scores == {"x": 0.5, "y": 0.4}
    assert (b.norm, b.mean, b.scores) == ("B", None, {"x": 0.9, "y": None})


def test_the_list_of_candidates(search):
    status, out, _ = search("candidates")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 21
    assert lines[6].split()[:2] == ["Candidate-B6", "EvoNormB0"]
    assert lines[10].split()[:2] == ["Candidate-B10", "Candidate-B9"]
    rows = json.loads(search("candidates", "--json")[1])
    assert {row["name"]: row["layer"] for row in rows} == CANDIDATES
    assert [row["rank"] for row in rows] == [*range(1, 11)] * 2
    assert rows[2]["formula"] == "-(x * sigmoid(x) / std_{b,w,h}(x))"


@pytest.mark.parametrize("layer", ["EvoNormB9", "BN-ReLU(eps=1)", "candidate-b11"])
def test_names_that_there_are_not(layer, search):
    status, _, err = search("try", layer, "--config", "small")
    assert (status, err.count("\n")) == (2, 1)
    assert "Candidate-B2" in err
