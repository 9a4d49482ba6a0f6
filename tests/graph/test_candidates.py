"""Appendix B of the paper: its twenty candidates against their formulas, written out in float64."""

import math

import pytest
import torch
from torch import nn

from evonorm_plugins import convert, get_norm_act
from evonorm_plugins.classification.models import build_model
from evonorm_plugins.layers.candidates import CANDIDATES, UNNAMED
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.registry import registered_name

EPS, GROUPS, SHAPE = 1e-5, 3, (2, 6, 2, 3)
sigmoid, tanh, sqrt = torch.sigmoid, torch.tanh, torch.sqrt


def aggregate(x, over, moment):
    """sqrt(s^2(x)) or sqrt(mu(x^2)) over an index set, of sums that are rounded once."""
    n, c = x.shape[:2]
    parts = {
        "b,w,h": x.transpose(0, 1).reshape(1, c, -1),
        "w,h": x.reshape(n, c, -1),
        "w,h,c": x.reshape(n, 1, -1),
        "w,h,c/g": x.reshape(n, GROUPS, -1),
    }[over]
    found = parts[..., :1].clone()
    for place in torch.cartesian_prod(*map(torch.arange, parts.shape[:2])).tolist():
        values = parts[tuple(place)].tolist()
        mean = math.fsum(values) / len(values) if moment == "std" else 0
        square = math.fsum((v - mean) ** 2 for v in values) / len(values)
        found[tuple(place)] = math.sqrt(square + EPS)
    spread = {"w,h,c": c, "w,h,c/g": c // GROUPS}.get(over, 1)
    return found.repeat_interleave(spread, 1).unsqueeze(-1)


# As the appendix writes them: gamma is 1 and beta 0. v is v_1.
def by_batch(z):
    return lambda x, v: x / torch.maximum(aggregate(x, "b,w,h", "std"), z(x, v))


def b4(x, v):
    return x * aggregate(x, "w,h", "rms")


def b9(x, v):
    return x + aggregate(x, "w,h", "std")


def s2(x, v):
    return x * sigmoid(x) / aggregate(x, "w,h,c/g", "rms")


def s5(x, v):
    return x * sigmoid(x) / aggregate(x, "w,h,c/g", "std")


def s10(x, v):
    z = x / aggregate(x, "w,h,c/g", "rms")
    return z * sigmoid(torch.maximum(x, z))


FORMULAS = {
    "Candidate-B1": by_batch(lambda x, v: (x + 1) * aggregate(x, "w,h", "rms")),
    "Candidate-B2": by_batch(lambda x, v: x + aggregate(x, "w,h,c", "rms")),
    "Candidate-B3": lambda x, v: -(x * sigmoid(x) / aggregate(x, "b,w,h", "std")),
    "Candidate-B4": by_batch(b4),
    "Candidate-B5": by_batch(lambda x, v: aggregate(x, "w,h,c", "rms") - x),
    "Candidate-B6": by_batch(lambda x, v: v * x + aggregate(x, "w,h", "std")),
    "Candidate-B7": by_batch(lambda x, v: aggregate(x, "w,h", "rms") - x),
    "Candidate-B8": by_batch(b4),
    "Candidate-B9": by_batch(b9),
    "Candidate-B10": by_batch(b9),
    "Candidate-S1": lambda x, v: x * tanh(sigmoid(x)) / aggregate(x, "w,h,c/g", "rms"),
    "Candidate-S2": s2,
    "Candidate-S3": s2,
    "Candidate-S4": s2,
    "Candidate-S5": s5,
    "Candidate-S6": lambda x, v: x * sigmoid(v * x) / aggregate(x, "w,h,c/g", "std"),
    "Candidate-S7": s5,
    "Candidate-S8": s2,
    "Candidate-S9": s5,
    "Candidate-S10": s10,
}


def options(name):
    return {"dtype": torch.float64, **({"groups": GROUPS} if "-S" in name else {})}


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula_of_the_appendix(name, device):
    """To 1e-15: of numbers up to 3, a few roundings."""
    x = torch.randn(SHAPE, dtype=torch.float64)
    layer = get_norm_act(name, SHAPE[1], **options(name)).to(device)
    v = torch.rand(SHAPE[1], dtype=torch.float64) + 0.5
    for own in ("v", "v1"):
        if getattr(layer, own, None) is not None:
            layer.load_state_dict({**layer.state_dict(), own: v.to(device)})
    expected = FORMULAS[name](x, v[:, None, None])
    torch.testing.assert_close(layer(x.to(device)).cpu(), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", UNNAMED)
def test_gradients(name, training, device):
    layer = get_norm_act(name, SHAPE[1], **options(name)).to(device).train(training)
    x = torch.randn(SHAPE, dtype=torch.float64, device=device).requires_grad_()
    torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.weight, layer.bias))


def test_ranks_and_duplicates():
    """Which of the twenty are the same is told by the formulas, and by the graphs' digests."""
    assert list(CANDIDATES) == [f"Candidate-{s}{rank}" for s in "BS" for rank in range(1, 11)]
    assert list(FORMULAS) == list(CANDIDATES)
    assert len(set(CANDIDATES.values())) == 13
    assert len({KNOWN[layer].digest() for layer in CANDIDATES.values()}) == 13
    marked = {"B8": "B4", "B10": "B9", "S3": "S2", "S4": "S2", "S7": "S5", "S8": "S2", "S9": "S5"}
    for later, first in marked.items():
        assert CANDIDATES[f"Candidate-{later}"] == CANDIDATES[f"Candidate-{first}"]
    for name, layer in CANDIDATES.items():
        assert registered_name(name) == layer
        KNOWN[layer].check_space(name[10])


@pytest.mark.parametrize("name", ["Candidate-B5", "candidate_s10(groups=4)"])
def test_models_take_them(name):
    """``convert`` and the classifiers; Detectron2 is tested with every registered name."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    converted, _ = convert(model, name)
    built = build_model("resnet8_cifar", 10, name)
    for network in (converted, built):
        graphs = [m for m in network.modules() if isinstance(m, GraphNormAct)]
        digests = {m.graph.digest() for m in graphs}
        assert digests == {KNOWN[registered_name(name.partition("(")[0])].digest()}
        network(torch.randn(4, 3, 16, 16)).square().mean().backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())
