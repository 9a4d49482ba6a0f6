"""The path of a graph's file as the name of a norm."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evonorm_plugins
from evonorm_plugins import get_norm_act
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.registry import is_norm_act


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "found (2)"
    folder.mkdir()
    KNOWN["EvoNormS0"].save(folder / "layer.json")
    return folder


def test_path(folder):
    layer = get_norm_act(f"{folder}/layer.json", 8)
    assert type(layer) is GraphNormAct
    assert (layer.num_features, layer.groups, layer.apply_act) == (8, 32, True)
    assert layer.graph == KNOWN["EvoNormS0"].canonical()
    assert is_norm_act(f"{folder}/layer.json")
    assert get_norm_act(f"{folder}/layer.json", 8, device="meta").weight.is_meta


@pytest.mark.parametrize(
    "name", ["layer.json(groups=2, eps=1e-3)", "layer.json (eps=.001,groups=2)"]
)
def test_options(name, folder):
    layer = get_norm_act(f"{folder}/{name}", 8, momentum=0.5)
    assert (layer.groups, layer.eps, layer.momentum) == (2, 1e-3, 0.5)
    assert is_norm_act(f"{folder}/{name}")
    assert get_norm_act(f"{folder}/{name}", 8, groups=4).groups == 4
    x = torch.randn(2, 8, 3, 3)
    same = get_norm_act("EvoNormS0(groups=2, eps=1e-3)", 8)
    torch.testing.assert_close(layer(x), same(x))


def test_what_is_wrong_with_it(folder):
    with pytest.raises(ValueError, match=r"cannot read the layer graph .*none\.json: No such file"):
        get_norm_act(f"{folder}/none.json", 8)
    (folder / "layer.json").write_text('{"format": "evonorm_plugins layer graph"')
    with pytest.raises(ValueError, match=r"cannot read the layer graph .*layer\.json: Expecting"):
        get_norm_act(f"{folder}/layer.json", 8)
    KNOWN["EvoNormB0"].save(folder / "layer.json")
    with pytest.raises(TypeError, match="grupos"):
        get_norm_act(f"{folder}/layer.json(grupos=2)", 8)
    with pytest.raises(ValueError, match=r"cannot read the options of .*groups"):
        get_norm_act(f"{folder}/layer.json(groups)", 8)
    with pytest.raises(ValueError, match="momentum=3"):
        get_norm_act(f"{folder}/layer.json(momentum=3)", 8)


@pytest.mark.parametrize("name", ["layer.jsonl", "json", "layer.json.txt", "layer.json)"])
def test_what_is_no_path(name):
    assert not is_norm_act(name)
    with pytest.raises(ValueError, match=r"or the path of a layer graph, which ends in \.json"):
        get_norm_act(name, 8)


def test_graphs_are_for_those_who_use_them(folder):
    code = (
        "import sys; from evonorm_plugins import get_norm_act;"
        "loaded = lambda: 'evonorm_plugins.layers.graph' in sys.modules;"
        f"print(loaded(), get_norm_act({f'{folder}/layer.json'!r}, 8).num_features, loaded())"
    )
    root = Path(evonorm_plugins.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.split() == ["False", "8", "True"]
