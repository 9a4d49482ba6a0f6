"""``fuse()``: what it changes in a model, what it leaves, what it refuses."""

import copy
import json
import pickle
from functools import partial

import pytest
import timm
import torch
from timm.layers import (
    EvoNorm2dB0,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS2,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    GroupNormAct,
)
from torch import nn
from torch.nn.utils import prune

from evonorm_plugins import EvoNormB0, EvoNormS0, fold_for_inference
from evonorm_plugins.integrations.timm import ConvertError, fuse
from tests.integrations.timm.comparison import assert_as_good, drawn, numbers

# Small ones of timm: 9 layers with an activation and 4 without.
MODELS = {
    "S0": ("test_efficientnet_evos", {}),
    "S0a": ("test_efficientnet", {"norm_layer": partial(EvoNorm2dS0a, group_size=8)}),
    "GN": ("test_efficientnet_gn", {}),
    "B0": ("test_efficientnet", {"norm_layer": "evonormb0"}),
    "B2": ("test_efficientnet", {"norm_layer": "evonormb2"}),
    "FRN": ("test_efficientnet", {"norm_layer": "frntlu"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_model(kind, exact):
    name, options = MODELS[kind]
    theirs = drawn(timm.create_model(name, num_classes=5, **options))
    ours, report = fuse(copy.deepcopy(theirs))
    assert report.counts() == {"fused": 13, "left": 0}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, False):
        x = torch.randn(3, 3, 48, 48)
        ours.train(training)
        theirs.train(training)
        expected = exact(theirs, x)
        assert_as_good(numbers(ours, x), numbers(theirs, x), expected, slack=1e-4)


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        EvoNorm2dB0(8),
        nn.Conv2d(8, 8, 3),
        EvoNorm2dS0(8, groups=4),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def test_training_goes_on():
    """An optimizer that was there before, its momenta included, and the moving variance."""
    ours, theirs = small(), None
    x = torch.randn(4, 3, 8, 8)
    ours(x)
    theirs = copy.deepcopy(ours)
    for model, fuses in ((ours, True), (theirs, False)):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            if step == 2 and fuses:
                assert fuse(model).model is model
            sgd.zero_grad()
            model(x).square().mean().backward()
            sgd.step()
    assert type(ours[1]) is EvoNormB0
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_layers_stay_the_same_objects():
    model = small()
    model(torch.randn(1, 3, 8, 8))
    layer, calls = model[3], []
    before, after = (
        layer.register_forward_pre_hook(lambda *_: calls.append("before")),
        layer.register_forward_hook(lambda *_: calls.append("after")),
    )
    layer.eval()
    layer.v.requires_grad_(False)
    both, held = nn.ModuleList([model, layer]), [layer]
    assert list(fuse(both).report.fused) == ["0.1", "0.3"]
    assert model[3] is both[1] is held[0]
    assert isinstance(layer, EvoNormS0)
    assert not layer.training
    assert model[1].training
    assert [p.requires_grad for p in layer.parameters()] == [True, True, False]
    model(torch.randn(1, 3, 8, 8))
    assert calls == ["before", "after"]
    before.remove()
    after.remove()
    model(torch.randn(1, 3, 8, 8))
    assert calls == ["before", "after"]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(copied[3], EvoNormS0)


def test_report():
    model = small()
    model[5] = nn.Linear(128, 5)
    model[3].forward = lambda x: x
    report = fuse(model).report
    assert report.fused == {"1": "EvoNorm2dB0, now EvoNormB0"}
    assert report.left == {"3": "EvoNorm2dS0, for its forward has been replaced"}
    assert json.loads(json.dumps(report.to_dict()))["counts"] == {"fused": 1, "left": 1}
    assert str(report) == (
        "layers fused: 1\n  1: EvoNorm2dB0, now EvoNormB0\n"
        "layers left: 1\n  3: EvoNorm2dS0, for its forward has been replaced"
    )
    assert fuse(model).report.fused == {}  # once is enough


def test_without_such_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    kept, report = fuse(model)
    assert kept is model
    assert report.counts() == {"fused": 0, "left": 0}
    assert str(report).endswith("This model holds no EvoNorm, FRN or GroupNormAct of timm.")


class Doubled(EvoNorm2dS0):
    def forward(self, x):
        return super().forward(2 * x)


def pruned():
    layer = EvoNorm2dS0(64)
    prune.l1_unstructured(layer, "v", 3)
    return layer


def without(layer, name):
    setattr(layer, name, None)
    return layer


LEFT = {
    "subclass": (lambda: Doubled(64), "Doubled is a class of its own"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(EvoNorm2dS0(64)),
        "ParametrizedEvoNorm2dS0 is a class of its own",
    ),
    "pruned": (
        pruned,
        "it has bias, v_orig, weight where a EvoNorm2dS0 has bias, v, weight",
    ),
    "no gamma": (lambda: without(EvoNorm2dS0(64), "weight"), "its gamma is no parameter"),
    "groups": (
        lambda: EvoNorm2dS0(48),
        "its 32 groups do not divide 48 channels, so it cannot run",
    ),
    "eps": (lambda: EvoNorm2dS0(64, eps=0), "eps=0 must be a finite number above 0"),
    "another activation": (
        lambda: EvoNorm2dS1(64, act_layer=nn.GELU),
        "this package has no EvoNorm2dS1 with GELU",
    ),
    "in place": (
        lambda: EvoNorm2dS2(64, act_layer=lambda: nn.SiLU(inplace=True)),
        "its activation overwrites what statistics are taken of",
    ),
    "dropout": (
        lambda: GroupNormAct(64, drop_layer=nn.Dropout),
        "Dropout comes between norm and activation",
    ),
    "no gamma of GN": (lambda: GroupNormAct(64, affine=False), "its gamma is no parameter"),
    "another activation of GN": (
        lambda: GroupNormAct(64, act_layer=nn.GELU),
        "this package has no GroupNormAct with GELU",
    ),
    "another activation of FRN": (
        lambda: FilterResponseNormAct2d(64, act_layer=nn.Hardswish),
        "this package has no FilterResponseNormAct2d with Hardswish",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left(case):
    make, why = LEFT[case]
    model = nn.Sequential(make(), FilterResponseNormTlu2d(64))
    kind, before = type(model[0]), dict(vars(model[0]))
    report = fuse(model).report
    assert report.left == {"0": f"{kind.__name__}, for {why}"}
    assert list(report.fused) == ["1"]
    assert type(model[0]) is kind
    assert vars(model[0]) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refused():
    def plain():
        return nn.Sequential(nn.Conv2d(3, 8, 3), EvoNorm2dS0(8, groups=4))

    x = torch.randn(1, 3, 8, 8)
    graph = torch.fx.symbolic_trace(nn.Sequential(plain()[0]))
    wrapped = torch.compile(plain())
    for model, message in (
        (torch.jit.trace(plain(), x), "the model is scripted: fuse the model it was made from"),
        (torch.jit.script(nn.Conv2d(3, 8, 3)), "the model is scripted"),
        (graph, "the model is a graph of torch.fx: fuse the model it was traced from"),
        (wrapped, "the model is a OptimizedModule: fuse the model before wrapping it"),
        ("resnet50", "a model is an nn.Module, not 'resnet50'"),
    ):
        with pytest.raises(ConvertError, match=message):
            fuse(model)
    assert type(wrapped._orig_mod[1]) is EvoNorm2dS0
    mixed = nn.Sequential(plain(), graph)
    with pytest.raises(ConvertError, match=r"^1 is a graph of torch.fx"):
        fuse(mixed)
    assert type(mixed[0][1]) is EvoNorm2dS0


def test_folded_for_inference():
    """A norm over groups stays, with and without activation; gamma of an EvoNorm goes ahead."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 64, 3), GroupNormAct(64), nn.Conv2d(64, 64, 1)),
        *(GroupNormAct(64, apply_act=False), nn.Conv2d(64, 64, 1), EvoNorm2dS0(64)),
        nn.Conv2d(64, 8, 1),
    ).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    folded = fold_for_inference(fuse(model).model)
    found = [(norm.folded, norm.reason) for norm in folded.fold_report.norms]
    assert found == [
        ("", "gamma and beta come between statistics of the input and an activation"),
        ("", "it takes statistics of its input"),
        ("gamma and beta", ""),
    ]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(x), model(x))
