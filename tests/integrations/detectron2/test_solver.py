"""gamma, beta and v obey SOLVER.WEIGHT_DECAY_NORM."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from evonorm_plugins.layers import EvoNormB0, EvoNormS0, NormAct


def decays(model, groups):
    """{parameter name: weight decay}; every parameter once."""
    names = {id(p): n for n, p in model.named_parameters()}
    pairs = [(names[id(p)], g["weight_decay"]) for g in groups for p in g["params"]]
    assert len(pairs) == len(dict(pairs)) == len(names)
    return dict(pairs)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "FRN", "BN-Swish"])
def test_build_optimizer(small_cfg, norm):
    cfg = small_cfg(norm, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.WEIGHT_DECAY_NORM", 0.25)
    model = build_model(cfg)
    found = decays(model, build_optimizer(cfg, model).param_groups)
    norms = {
        f"{n}.{k}"
        for n, m in model.named_modules()
        if isinstance(m, NormAct)
        for k, _ in m.named_parameters()
    }
    assert any(n.endswith(".v") for n in norms)
    assert {n for n, decay in found.items() if decay == 0.25} == norms
    assert {decay for n, decay in found.items() if n not in norms} == {0.5}


def model():
    return nn.Sequential(nn.Conv2d(3, 8, 1), EvoNormS0(8), nn.BatchNorm2d(8), EvoNormB0(8))


def test_what_is_given_by_name_wins_as_for_stock_norms():
    m = model()
    groups = get_default_optimizer_params(
        m, 0.1, 0.5, weight_decay_norm=0.0, weight_decay_bias=0.125, overrides={"v": {"lr": 1.0}}
    )
    found = decays(m, groups)
    assert {n: d for n, d in found.items() if n.endswith("bias")} == {
        "0.bias": 0.125, "1.bias": 0.125, "2.bias": 0.125, "3.bias": 0.125,
    }  # fmt: skip
    assert {n for n, d in found.items() if d == 0.0} == {
        "1.weight", "1.v", "2.weight", "3.weight", "3.v",
    }  # fmt: skip
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(m[1].v)] == 1.0
    assert rates[id(m[1].weight)] == 0.1


def test_without_weight_decay_norm_nothing_changes():
    m = model()
    groups = get_default_optimizer_params(m, 0.1, 0.5)
    assert set(decays(m, groups).values()) == {0.5}


def test_frozen_parameters_stay_out():
    m = model()
    m[1].requires_grad_(False)
    groups = get_default_optimizer_params(m, 0.1, 0.5, weight_decay_norm=0.0)
    ids = {id(p) for g in groups for p in g["params"]}
    assert not ids & {id(p) for p in m[1].parameters()}


def test_few_groups():
    m = model()
    groups = get_default_optimizer_params(m, 0.1, 0.5, weight_decay_norm=0.0)
    assert len(groups) == 2
    torch.optim.SGD(groups, lr=0.1).step()
