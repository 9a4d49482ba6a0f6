"""What the tests of timm share: its layers, and what they give in float64."""

import copy
import functools

import pytest
import torch

pytest.importorskip("timm")

from timm.layers import (
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    GroupNorm1Act,
    GroupNormAct,
)
from torch import nn

from evonorm_plugins.integrations.timm import unregister
from tests.integrations.timm.comparison import drawn, numbers

_FRN = functools.partial(FilterResponseNormAct2d, 8)
FUSED = {
    "B0": lambda: EvoNorm2dB0(8),
    "B0 with options": lambda: EvoNorm2dB0(8, momentum=0.3, eps=0.1),
    "B0 without activation": lambda: EvoNorm2dB0(8, apply_act=False),
    "B1": lambda: EvoNorm2dB1(8),
    "B1 without activation": lambda: EvoNorm2dB1(8, apply_act=False),
    "B2": lambda: EvoNorm2dB2(8),
    "B2 without activation": lambda: EvoNorm2dB2(8, apply_act=False),
    "S0": lambda: EvoNorm2dS0(8, groups=4),
    "S0 of a size": lambda: EvoNorm2dS0(8, group_size=4, eps=1e-2),
    "S0 without activation": lambda: EvoNorm2dS0(8, apply_act=False),
    "S0a": lambda: EvoNorm2dS0a(8, groups=4),
    "S0a without activation": lambda: EvoNorm2dS0a(8, groups=4, apply_act=False),
    "S1": lambda: EvoNorm2dS1(8, groups=2),
    "S1 with act_layer": lambda: EvoNorm2dS1(8, groups=2, act_layer=nn.SiLU),
    "S1 without activation": lambda: EvoNorm2dS1(8, apply_act=False),
    "S1 of the identity": lambda: EvoNorm2dS1(8, groups=2, act_layer=nn.Identity),
    "S1a": lambda: EvoNorm2dS1a(8, groups=8),
    "S1a without activation": lambda: EvoNorm2dS1a(8, groups=2, apply_act=False),
    "S2": lambda: EvoNorm2dS2(8, groups=1),
    "S2 without activation": lambda: EvoNorm2dS2(8, apply_act=False),
    "S2a": lambda: EvoNorm2dS2a(8, groups=4),
    "S2a without activation": lambda: EvoNorm2dS2a(8, groups=4, apply_act=False),
    "GN with ReLU": lambda: GroupNormAct(8, 4),
    "GN with SiLU": lambda: GroupNormAct(8, group_size=4, eps=1e-2, act_layer=nn.SiLU),
    "GN without activation": lambda: GroupNormAct(8, 2, apply_act=False),
    "GN of one group": lambda: GroupNorm1Act(8),
    "FRN with TLU": lambda: FilterResponseNormTlu2d(8),
    "FRN with TLU off": lambda: FilterResponseNormTlu2d(8, apply_act=False),
    "FRN with ReLU": lambda: _FRN(act_layer=nn.ReLU),
    "FRN with SiLU": lambda: _FRN(act_layer=nn.SiLU, eps=1e-3),
    "FRN without activation": lambda: _FRN(act_layer=None),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unregistered():
    yield
    unregister()


@pytest.fixture(params=FUSED)
def timms(request):
    """Every layer of timm that :func:`fuse` knows in turn, with drawn parameters."""
    return drawn(FUSED[request.param]())


@pytest.fixture
def exact(monkeypatch):
    """``exact(model, x, dy)``: :func:`numbers` of a copy of timm's model in float64.

    timm takes statistics of ``x.float()``, which would round them to float32.
    """

    def exact(model, x, dy=None):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            dy = None if dy is None else dy.double()
            return numbers(copy.deepcopy(model).double(), x.double(), dy)

    return exact
