"""Whole searches by the command line: options, going on, what is refused."""

import json
import re
from pathlib import Path

import pytest

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.search import run
from evonorm_plugins.search.config import (
    SINCE_2,
    check_same,
    from_dict,
    load_config,
    training_config,
)
from evonorm_plugins.search.run import open_store
from evonorm_plugins.search.store import Store
from evonorm_plugins.training.config import to_dict

# ``images`` of conftest makes two classes that a few steps tell apart.
TINY = [
    *("holdout=20", "resolution=8", "batch_size=10", "val_batch_size=20", "steps=2"),
    *("quality_steps=1", "quality_accuracy=0", "stability_steps=1", "stability_batch=4"),
    *("anchors=[mobilenetv2_cifar]", "stability_anchor=mobilenetv2_cifar", "width=0.1"),
]

MODEL = ("resnet8_cifar", "BN-ReLU")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(json.dumps({"data": "images", "candidates": 12}))  # JSON is YAML
    return path


def test_shipped_configs():
    files = sorted(Path(__file__).parents[2].glob("configs/search/*.yaml"))
    assert [f.stem for f in files] == ["B", "B_paper", "S", "S_paper", "quick", "random", "small"]
    configs = {f.stem: load_config(f, ["data=x", "candidates=10"]) for f in files}
    b, s, random = configs["B"], configs["S"], configs["random"]
    assert (b.space, b.training_steps, b.random_share) == ("B", 2000, 0.5)
    assert (s.space, s.training_steps, s.random_share) == ("S", 5000, 0.5)
    assert (random.space, random.random_share) == ("B", 1)
    assert (b.window, b.tournament, b.mutations) == (2500, 0.05, 2)
    assert (b.batch_size, b.resolution, b.lr, b.quality_steps) == (128, 24, 0.1, 100)
    for name in ("B", "S"):
        paper, task = configs[f"{name}_paper"], training_config(configs[f"{name}_paper"], *MODEL)
        assert (task.flip, task.clip_grad, paper.filters) == (False, None, ["quality", "stability"])
        changed = {k for k, v in to_dict(paper).items() if v != to_dict(configs[name])[k]}
        assert changed == {"flip", "clip_grad", "filters", "store"}
        assert training_config(configs[name], *MODEL).flip
    assert len({c.store for c in configs.values()}) == len(configs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"random_share": 1.5}, "random_share=1.5 is a share, at most 1"),
        ({"tournament": 5}, "tournament=5.0 is a share, at most 1"),
        ({"tournament": 0}, "tournament=0.0 must be at least"),
        ({"winner": "best"}, "winner='best' is not one of pareto, average"),
        ({"moves": ["node", "swap"]}, "moves=['node', 'swap']: 'swap' is not one of ['node', "),
        ({"moves": []}, "moves=[]: give one of ['node', 'live', "),
        ({"moves": ["live", "live"]}, "moves=['live', 'live']: live is there twice"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"candidates": None}, "give candidates=NUMBER or hours=NUMBER"),
        ({"candidate": 3}, "there is no option 'candidate'; did you mean 'candidates'?"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"seed": 2**64}, "seed="),
        ({"candidates": -5}, "candidates=-5 must be at least 1"),
        ({"hours": float("nan")}, "hours=nan must be"),
        ({"filters": ["top"]}, "filters=['top']: top needs quality before it"),
        ({"filters": ["quality", "rungs"]}, "rungs must come before quality"),
        ({"filters": ["top", "quality"]}, "quality must come before top"),
        ({"filters": ["rungs"], "rungs": []}, "rungs=[]: give numbers of steps"),
        ({"filters": ["rungs"], "rungs": [50, 25]}, "rungs=[50, 25]: give numbers of steps"),
        ({"filters": ["rungs"], "rungs": [100]}, "from 1 to quality_steps - 1 = 99"),
        ({"rung_share": 2}, "rung_share=2.0 is a share, at most 1"),
        ({"top_share": 0}, "top_share=0.0 must be at least"),
        ({"filters": ["speed"]}, "'speed' is not one of ['trial', 'stability', 'quality', 'propag"),
    ],
)
def test_bad_options(values, message):
    with pytest.raises(ConfigError) as error:
        from_dict({"data": "x", "candidates": 5, **values})
    assert message in str(error.value)


def test_what_a_resumed_search_may_change():
    config = from_dict({"data": "x", "candidates": 5})
    saved = json.loads(json.dumps(to_dict(config)))
    check_same(from_dict({"data": "y", "candidates": 50, "workers": 3}), saved, "s.sqlite")
    # What was begun before there were these options goes on as it began.
    for key in SINCE_2:
        del saved[key]
    check_same(from_dict({"data": "x", "candidates": 5}), saved, "s.sqlite")
    with pytest.raises(ConfigError, match=r"begun with same='structure' \(now 'function'\)"):
        check_same(from_dict({"data": "x", "candidates": 5, "same": "function"}), saved, "s.sqlite")
    message = r"s.sqlite was begun with seed=0 \(now 1\): give the same, or another store"
    with pytest.raises(ConfigError, match=message):
        check_same(from_dict({"data": "x", "candidates": 5, "seed": 1}), saved, "s.sqlite")


@pytest.fixture
def no_ray(monkeypatch):
    def connect(*_, **__):
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(run, "connect", connect)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=none.zip"], "data=none.zip: there is no such folder or file"),
        (["data=bad.zip"], "bad.zip"),
        (["val_data=none.zip"], "val_data=none.zip: there is no such folder or file"),
        (["holdout=60"], "holdout=60 leaves none of the 60 images"),
        (["batch_size=50"], "40 training images are fewer than one update takes: batch_size=50"),
        (["device=cuda:99"], "cuda:99"),
        (["device=banana"], "banana"),
        (["store=."], ". is a folder, not the file of a search"),
        (["store=bad.zip"], "bad.zip is no search's file or is damaged"),
        (["store=bad.zip/a.sqlite"], "bad.zip"),
        (["store="], "store=: the name is empty"),
        (["search={}"], "there is no option 'search'"),
        (["workers=-1"], "workers=-1 must be at least 1"),
    ],
)
def test_bad_input_is_found_before_ray_starts(
    config_file, images, search, no_ray, monkeypatch, tmp_path, options, message
):
    """In one line, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    (tmp_path / "bad.zip").write_text("no zip" * 1000)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = search("run", "--config", config_file, f"data={images}", *TINY, *options)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_search_from_its_beginning_to_its_end(started_ray, config_file, images, tmp_path, search):
    store = tmp_path / "found.sqlite"
    # The first 12 layers of this seed have some that no filter refuses.
    command = ["run", "--config", config_file, f"data={images}", f"store={store}", *TINY]
    command.append("seed=11")
    status, out, err = search(*command)
    assert status == 0, err
    assert re.match(r"12 candidates, \d+ of them different, 0 more handed out\n", out)
    assert "\nresults waited " in out
    status, _, err = search(*command)  # it is there
    assert status == 2
    assert "holds a search already: go on with --resume" in err
    status, _, err = search(*command, "--resume", "seed=1")
    assert status == 2
    assert "was begun with seed=11 (now 1)" in err
    with Store(store) as found:
        before = found.finished()
        assert len(before) == 12
        assert {c.status for c in before} == {"passed", "rejected"}
        assert all(set(c.scores) == {"mobilenetv2_cifar"} for c in before if c.status == "passed")
    status, out, _ = search(*command, "--resume", "candidates=14", "workers=1", "--json")
    assert status == 0
    numbers = json.loads(out)
    assert numbers["results"] == 14
    assert "queue" in numbers
    with Store(store) as found:
        assert found.finished()[:12] == before
        assert len(found) == 14


def test_a_store_that_another_search_writes_to(config_file, images, tmp_path, search, no_ray):
    path = tmp_path / "found.sqlite"
    command = ["run", "--config", config_file, f"data={images}", f"store={path}", *TINY]
    with Store.create(path, {}):
        status, _, err = search(*command)
    assert (status, err) == (1, f"error: {path} is being written by another process\n")


def test_a_search_that_never_began_is_no_search_to_go_on_with(config_file, tmp_path):
    store = tmp_path / "found.sqlite"
    for seed in (2, 3):
        config = load_config(config_file, ["data=x", f"store={store}", f"seed={seed}"])
        with open_store(config, False) as new:
            assert new.config["seed"] == seed


def test_one_layer(config_file, images, search):
    command = ["try", "tanh(x)", "--config", config_file, f"data={images}", *TINY]
    status, out, _ = search(*command)
    assert status == 0
    out = out.splitlines()
    assert out[:2] == ["passed", "tanh(x)"]
    assert any(line.startswith("validation accuracy: mobilenetv2_cifar 0.") for line in out)
    status, out, _ = search(*command, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["filter"] is None
    assert set(found["scores"]) == {"mobilenetv2_cifar"}
    assert (found["task"]["anchors"], found["task"]["data"]) == (["mobilenetv2_cifar"], images)
    command[1] = "zero"
    status, out, _ = search(*command, "filters=[trial]")
    assert status == 0
    assert out.startswith("constant\n0\n")


def test_a_formula_as_a_layer_file(config_file, images, tmp_path, search):
    path = tmp_path / "layers/b0.json"
    assert search("layer", "x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))", path)[0] == 0
    assert Graph.load(path).digest() == KNOWN["EvoNormB0"].digest()
    command = ["try", path, "--config", config_file, f"data={images}", *TINY]
    status, out, _ = search(*command, "filters=[trial]")
    assert status == 0
    assert out.splitlines()[1] == str(KNOWN["EvoNormB0"])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("relu(x)", "unknown function 'relu'"),
        ("EvoNormB9", "unknown name 'EvoNormB9'"),
        ("(" + "-" * 5000 + "x)", "nested too deeply"),
        ("none.json", "cannot read the layer graph none.json: No such file or directory"),
        ("deep.json", "cannot read the layer graph deep.json: it is nested too deeply"),
        (".json", "cannot read the layer graph .json"),
    ],
    ids=lambda text: text[:12],
)
def test_no_layer(config_file, search, tmp_path, monkeypatch, layer, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 10_000 + "]" * 10_000)
    status, _, err = search("try", layer, "--config", config_file)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    if not layer.endswith(".json"):
        assert "EvoNormB0, EvoNormB1" in err
        assert search("layer", layer, "out.json")[0] == 2
        assert not (tmp_path / "out.json").exists()
