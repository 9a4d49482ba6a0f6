"""``register()``: timm builds our layers, ``unregister()``: and its own again."""

import warnings

import pytest
import timm
import torch
from timm.layers import EvoNorm2dB1, EvoNorm2dS0, create_norm_act_layer

from evonorm_plugins import EvoNormB1, EvoNormS0
from evonorm_plugins.integrations.timm import register, unregister


def norms(model):
    return {
        type(m)
        for m in model.modules()
        if "Norm2d" in type(m).__name__ or "EvoNorm" in str(type(m))
    }


def test_models_by_name():
    register()
    register()  # once is enough
    assert norms(timm.create_model("test_efficientnet_evos")) == {EvoNormS0}
    assert norms(timm.create_model("test_efficientnet", norm_layer="evonormb1")) == {EvoNormB1}
    unregister()
    unregister()
    assert norms(timm.create_model("test_efficientnet_evos")) == {EvoNorm2dS0}
    assert norms(timm.create_model("test_efficientnet", norm_layer="evonormb1")) == {EvoNorm2dB1}


def test_timm_is_as_it_was():
    before = EvoNorm2dS0.__init__
    register()
    assert EvoNorm2dS0.__init__ is not before
    unregister()
    assert EvoNorm2dS0.__init__ is before


def test_layers():
    register()
    layer = create_norm_act_layer("evonorms0", 64, group_size=16, dtype=torch.float64, inplace=True)
    assert (type(layer), layer.groups, layer.weight.dtype) == (EvoNormS0, 4, torch.float64)
    affine = EvoNorm2dS0(64, apply_act=False, device="meta")
    assert (type(affine), affine.apply_act, affine.bias.is_meta) == (EvoNormS0, False, True)


def test_same_model_as_fused():
    theirs = timm.create_model("test_efficientnet_evos").eval()
    register()
    ours = timm.create_model("test_efficientnet_evos").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs(x))


def test_what_stays_says_so():
    register()
    with pytest.warns(UserWarning, match="32 groups do not divide 48 channels") as caught:
        layer = EvoNorm2dS0(48)
    assert type(layer) is EvoNorm2dS0
    assert caught[0].filename == __file__


def test_subclasses_and_scripted_models_are_timms():
    class Own(EvoNorm2dS0):
        def __init__(self, channels):
            super().__init__(channels, groups=1)
            self.scale = 2

    register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = Own(8)
        model = timm.create_model("test_efficientnet_evos", scriptable=True)
    assert (type(own), own.groups, own.scale) == (Own, 1, 2)
    assert norms(model) == {EvoNorm2dS0}
