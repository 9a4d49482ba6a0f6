"""Whole searches by the command line: options, going on, what is refused."""

import importlib.util
import json
import re

import pytest
from evonorm_plugins.search.proxy import to_dict

from evonorm_plugins.cli.search import main
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.search.config import check_same, from_dict, load_config
from evonorm_plugins.search.run import _opened
from evonorm_plugins.search.store import Store

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "ray[tune]"'
)

# ``images`` of conftest makes two classes that a few steps tell apart.
TINY = [
    *("holdout=20", "resolution=8", "batch_size=10", "val_batch_size=20", "steps=2"),
    *("quality_steps=1", "quality_accuracy=0", "stability_steps=1", "stability_batch=4"),
    *("anchors=[mobilenetv2_cifar]", "stability_anchor=mobilenetv2_cifar", "width=0.1"),
]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(json.dumps({"data": "images", "candidates": 12}))  # JSON is YAML
    return path


def test_shipped_configs():
    from pathlib import Path

    files = sorted(Path(__file__).parents[2].glob("configs/search/*.yaml"))
    assert [f.stem for f in files] == ["B", "S", "random", "small"]
    configs = {f.stem: load_config(f, ["data=x", "candidates=10"]) for f in files}
    b, s, random = configs["B"], configs["S"], configs["random"]
    assert (b.space, b.training_steps, b.random_share) == ("B", 2000, 0.5)
    assert (s.space, s.training_steps, s.random_share) == ("S", 5000, 0.5)
    assert (random.space, random.random_share) == ("B", 1)
    assert (b.window, b.tournament, b.mutations) == (2500, 0.05, 2)
    assert (b.batch_size, b.resolution, b.lr, b.quality_steps) == (128, 24, 0.1, 100)
    assert len({c.store for c in configs.values()}) == len(configs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"random_share": 1.5}, "random_share=1.5 is a share, at most 1"),
        ({"tournament": 5}, "tournament=5.0 is a share, at most 1"),
        ({"tournament": 0}, "tournament=0.0 must be at least"),
        ({"winner": "best"}, "winner='best' is not one of pareto, average"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"candidates": None}, "give candidates=NUMBER or hours=NUMBER"),
        ({"candidate": 3}, "there is no option 'candidate'; did you mean 'candidates'?"),
        ({"filters": ["speed"]}, "'speed' is not one of ['trial', 'stability', 'quality']"),
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
    message = r"s.sqlite was begun with seed=0 \(now 1\): give the same, or another store"
    with pytest.raises(ConfigError, match=message):
        check_same(from_dict({"data": "x", "candidates": 5, "seed": 1}), saved, "s.sqlite")


def test_data_that_is_not_there(config_file, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", str(config_file), "data=none.zip"]) == 2
    assert capsys.readouterr().err == "error: there is no data='none.zip'\n"
    assert not (tmp_path / "output").exists()


@needs_ray
def test_a_search_from_its_beginning_to_its_end(config_file, images, tmp_path, capsys):
    store = tmp_path / "found.sqlite"
    # The first 12 layers of this seed have some that no filter refuses.
    command = ["run", "--config", str(config_file), f"data={images}", f"store={store}", *TINY]
    command.append("seed=11")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert re.match(r"12 candidates, \d+ of them different, 0 more handed out\n", out)
    assert main(command) == 2  # it is there
    assert "holds a search already: go on with --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "seed=1"]) == 2
    assert "was begun with seed=11 (now 1)" in capsys.readouterr().err
    with Store(store) as found:
        before = found.finished()
        assert len(before) == 12
        assert {c.status for c in before} == {"passed", "rejected"}
        assert all(set(c.scores) == {"mobilenetv2_cifar"} for c in before if c.status == "passed")
    assert main([*command, "--resume", "candidates=14"]) == 0
    with Store(store) as found:
        assert found.finished()[:12] == before
        assert len(found) == 14


@needs_ray
def test_data_that_workers_cannot_read(config_file, tmp_path, capsys):
    (tmp_path / "bad.zip").write_text("no zip")
    store = tmp_path / "found.sqlite"
    command = ["run", "--config", str(config_file), f"data={tmp_path / 'bad.zip'}"]
    assert main([*command, f"store={store}"]) == 1
    err = capsys.readouterr().err
    assert "error: no worker can start: " in err
    assert "bad.zip" in err
    # Nothing was tried: it is no search to go on with.
    assert main([*command, f"store={store}", "data=none.zip"]) == 2
    with _opened(load_config(config_file, ["data=x", f"store={store}", "seed=3"]), False) as new:
        assert new.config["seed"] == 3


def test_one_layer(config_file, images, capsys):
    command = ["try", "tanh(x)", "--config", str(config_file), f"data={images}", *TINY]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["passed", "tanh(x)"]
    assert any(line.startswith("validation accuracy: mobilenetv2_cifar 0.") for line in out)
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["filter"] is None
    assert set(found["scores"]) == {"mobilenetv2_cifar"}
    command[1] = "zero"
    assert main([*command, "filters=[trial]"]) == 0
    assert capsys.readouterr().out.startswith("constant\n0\n")


def test_a_formula_as_a_layer_file(config_file, images, tmp_path, capsys):
    path = tmp_path / "layers/b0.json"
    assert main(["layer", "x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))", str(path)]) == 0
    assert Graph.load(path).digest() == KNOWN["EvoNormB0"].digest()
    command = ["try", str(path), "--config", str(config_file), f"data={images}", *TINY]
    assert main([*command, "filters=[trial]"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == str(KNOWN["EvoNormB0"])


def test_no_layer(config_file, capsys):
    assert main(["layer", "relu(x)", "out.json"]) == 2
    assert "error: unknown function 'relu'" in capsys.readouterr().err
    assert main(["try", "EvoNormB9", "--config", str(config_file)]) == 2
    err = capsys.readouterr().err
    assert "unknown name 'EvoNormB9'" in err
    assert "EvoNormB0, EvoNormB1" in err
