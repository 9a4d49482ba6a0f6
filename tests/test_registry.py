"""Names, options in names, and what importing the package loads."""

import subprocess
import sys

import pytest
import torch

import evonorm_plugins
from evonorm_plugins import get_norm_act, layers, list_norm_acts, register_norm_act, registry
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers.graph.module import GraphNormAct

NAMES = {
    "EvoNormB0": layers.EvoNormB0,
    "EvoNormB1": layers.EvoNormB1,
    "EvoNormB2": layers.EvoNormB2,
    "EvoNormS0": layers.EvoNormS0,
    "EvoNormS1": layers.EvoNormS1,
    "EvoNormS2": layers.EvoNormS2,
    "SyncEvoNormB0": layers.SyncEvoNormB0,
    "SyncEvoNormB1": layers.SyncEvoNormB1,
    "SyncEvoNormB2": layers.SyncEvoNormB2,
    "BN-ReLU": layers.BNReLU,
    "BN-PReLU": layers.BNPReLU,
    "BN-Swish-1": layers.BNSwish1,
    "BN-Swish": layers.BNSwish,
    "GN-ReLU": layers.GNReLU,
    "GN-Swish-1": layers.GNSwish1,
    "GN-Swish": layers.GNSwish,
    "FRN": layers.FRN,
    "LN-ReLU": layers.LNReLU,
    "PixelNorm-ReLU": layers.PixelNormReLU,
    "Random": layers.RandomLayer,
    "Random + rej": layers.RandomRejLayer,
    "RS + rej": layers.RSRejLayer,
    # Layer graphs.
    "Candidate-B2": GraphNormAct,
    "Candidate-B3": GraphNormAct,
    "Candidate-B4": GraphNormAct,
    "Candidate-B5": GraphNormAct,
    "Candidate-B9": GraphNormAct,
    "Candidate-S1": GraphNormAct,
    "Candidate-S10": GraphNormAct,
}


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))


def test_list():
    assert list_norm_acts() == list(NAMES)
    list_norm_acts().clear()
    assert list_norm_acts() == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    layer = get_norm_act(name, 6)
    assert type(layer) is NAMES[name]
    assert layer.num_features == 6
    assert layer.apply_act
    assert not get_norm_act(name, 6, apply_act=False).apply_act
    assert registry.is_norm_act(name)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("evonorms0", layers.EvoNormS0),
        ("EvoNorm-S0", layers.EvoNormS0),
        ("evonorm_s0", layers.EvoNormS0),
        ("EVONORM S0", layers.EvoNormS0),
        ("EvoNorm-B0", layers.EvoNormB0),
        ("sync_evonorm_b0", layers.SyncEvoNormB0),
        ("BNReLU", layers.BNReLU),
        ("bn_silu", layers.BNSwish1),
        ("bn-swish", layers.BNSwish),
        ("GN-SiLU", layers.GNSwish1),
        ("FRN-TLU", layers.FRN),
        ("random+rej", layers.RandomRejLayer),
        ("RS+rej", layers.RSRejLayer),
        ("candidate_b2", GraphNormAct),
        ("Candidate S10", GraphNormAct),
        ("Candidate-B6", layers.EvoNormB0),
        ("candidates5", layers.EvoNormS1),
    ],
)
def test_aliases(name, layer):
    assert type(get_norm_act(name, 4)) is layer
    assert registry.is_norm_act(name)


@pytest.mark.parametrize(
    "name",
    [
        "EvoNormS0(groups=2, eps=1e-3)",
        "evonorm_s0 (eps = 1e-3, groups=2)",
        " EvoNormS0(groups=2,eps=.001) ",
    ],
)
def test_options_in_the_name(name):
    layer = get_norm_act(name, 8)
    assert type(layer) is layers.EvoNormS0
    assert (layer.groups, layer.eps, layer.apply_act) == (2, 1e-3, True)
    assert registry.is_norm_act(name)


def test_options_beside_the_name_win():
    layer = get_norm_act("EvoNormS0(groups=2, apply_act=False)", 8, groups=4)
    assert (layer.groups, layer.apply_act) == (4, False)
    assert get_norm_act("EvoNormS0()", 8).groups == 32


@pytest.mark.parametrize(
    "name",
    [
        "EvoNormS0(groups=2",
        "EvoNormS0(16)",
        "EvoNormS0(groups)",
        "EvoNormS0(groups=1, groups=2)",
        "EvoNormS0(**{})",
        "EvoNormS0(groups=len('ab'))",
        "EvoNormS0(groups={[]: 1})",
        "EvoNormS0(groups=2)(eps=1)",
        "EvoNormS0(groups=2).train(mode=True)",
        "EvoNormS0(groups=2) + 1",
    ],
)
def test_unreadable_options(name):
    with pytest.raises(ValueError, match="cannot read the options") as error:
        get_norm_act(name, 8)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("EvoNormS0(eps=1e400)", "eps=inf must be a finite number"),
        ("EvoNormS0(apply_act='no')", "apply_act='no' must be True or False"),
        ("EvoNormS0(groups=0)", "groups=0 must be an integer"),
        ("EvoNormS0(device='meta')", "device is no part of a name"),
        ("EvoNormS0(dtype='float16')", "dtype is no part of a name"),
        (f"EvoNormS0(eps={'-' * 5000}1)", "cannot read the options of 'EvoNormS0\\(eps=-"),
        (f"EvoNormS0(eps={'(' * 5000}1{')' * 5000})", "cannot read the options"),
        ("EvoNormS0(groups=16)\x00", "cannot read the options"),
        ("layer.json(device='meta')", "device is no part of a name"),
    ],
)
def test_bad_options_in_the_name(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        get_norm_act(name, 8)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "name",
    ["EvoNormS0)", "EvoNormS0\x00", "EvoNormS0\n", "[EvoNormS0]", "EvoNorm'S0", "EvoNormS0;"],
)
def test_slips_are_no_names(name):
    assert not registry.is_norm_act(name)
    with pytest.raises(ConfigError, match="did you mean 'EvoNormS0'") as error:
        get_norm_act(name, 8)
    assert repr(name) in str(error.value)


def test_unknown_name_lists_and_suggests():
    with pytest.raises(ValueError, match="did you mean 'EvoNormS0'") as error:
        get_norm_act("EvoNorn-S0", 8)
    assert "'EvoNorn-S0'" in str(error.value)
    assert all(name in str(error.value) for name in NAMES)
    with pytest.raises(ValueError, match="known: EvoNormB0") as error:
        get_norm_act("xyzzy", 8)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["", "BN", "xyzzy", "(groups=2)", None, 3, torch.nn.ReLU])
def test_what_is_no_name(name):
    assert not registry.is_norm_act(name)


@pytest.mark.parametrize("name", [None, 3, ("EvoNormS0",)])
def test_neither_name_nor_callable(name):
    with pytest.raises(ValueError, match="must be a string or a callable") as error:
        get_norm_act(name, 8)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option(name):
    with pytest.raises(TypeError, match="grupos"):
        get_norm_act(name, 8, grupos=4)
    with pytest.raises(TypeError, match="grupos"):
        get_norm_act(f"{name}(grupos=4)", 8)


def test_option_of_another_layer():
    with pytest.raises(TypeError, match="momentum"):
        get_norm_act("EvoNormS0", 8, momentum=0.1)
    with pytest.raises(TypeError, match="groups"):
        get_norm_act("EvoNormB0", 8, groups=4)


def test_callable():
    assert type(get_norm_act(layers.EvoNormB1, 8, momentum=0.5)) is layers.EvoNormB1
    identity = get_norm_act(lambda channels, apply_act: (channels, apply_act), 8, apply_act=False)
    assert identity == (8, False)


@pytest.mark.usefixtures("own_registry")
def test_register():
    register_norm_act("My Norm", lambda c, **options: (c, options), aliases=["mine"])
    assert list_norm_acts() == [*NAMES, "My Norm"]
    assert get_norm_act("my-norm(a=1)", 3, b=2) == (3, {"a": 1, "b": 2})
    assert get_norm_act("Mine", 3) == (3, {})


def test_registered_names_of_other_tests_are_gone():
    assert not registry.is_norm_act("My Norm")


@pytest.mark.parametrize(
    ("name", "aliases"),
    [("EvoNormS0", []), ("evonorm-s0", []), ("bn silu", []), ("New", ["other", "FRN"])],
)
@pytest.mark.usefixtures("own_registry")
def test_taken_names(name, aliases):
    with pytest.raises(ValueError, match=r"is taken by '(EvoNormS0|BN-Swish-1|FRN)'"):
        register_norm_act(name, layers.EvoNormS0, aliases=aliases)
    assert list_norm_acts() == list(NAMES)
    assert not registry.is_norm_act("other")


@pytest.mark.parametrize("name", ["My(Norm)", "norm\x00", "mine.json", "a=1"])
@pytest.mark.usefixtures("own_registry")
def test_names_that_could_not_be_found(name):
    for given in ({"name": name}, {"name": "New", "aliases": [name]}):
        with pytest.raises(ConfigError, match="is no name: letters, digits, spaces"):
            register_norm_act(factory=layers.EvoNormS0, **given)
    assert list_norm_acts() == list(NAMES)


@pytest.mark.usefixtures("own_registry")
def test_name_without_letters():
    with pytest.raises(ValueError, match="'--' holds no letter"):
        register_norm_act("--", layers.EvoNormS0)


def test_public_names():
    assert all(hasattr(evonorm_plugins, name) for name in evonorm_plugins.__all__)
    assert evonorm_plugins.EvoNormS0 is layers.EvoNormS0


def test_import_needs_torch_alone():
    code = (
        "import sys, time, torch; before = set(sys.modules); start = time.perf_counter();"
        "import evonorm_plugins; seconds = time.perf_counter() - start;"
        "print(seconds, *{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    seconds, *loaded = run.stdout.split()
    assert set(loaded) - set(sys.stdlib_module_names) <= {"evonorm_plugins", "torch"}
    assert float(seconds) < 1
    for name in ("detectron2", "triton", "torchvision", "biggan"):
        assert name not in loaded
