"""What of the old model the new one has, and that the old one stays as it was."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from evonorm_plugins import convert
from tests.conversion.blocks import Functional, Residual, conv, randomize


def pair(norm=None):
    return nn.Sequential(conv(), norm or randomize(nn.BatchNorm2d(4)), nn.ReLU())


def test_gamma_beta_and_moving_variance():
    model = pair()
    converted = convert(model, "EvoNormB0").model
    for name in ("weight", "bias", "running_var"):
        assert torch.equal(getattr(converted[1], name), getattr(model[1], name))
    assert torch.equal(converted[1].v, torch.ones(4))
    group_norm = pair(nn.GroupNorm(2, 4))
    converted = convert(group_norm, "EvoNormB0").model
    assert torch.equal(converted[1].running_var, torch.ones(4))


def test_statistics_of_batch_norm_for_batch_norm():
    model = pair()
    model[1].num_batches_tracked += 7
    norm = convert(model, "BN-Swish").model[1].norm
    for key, value in model[1].state_dict().items():
        assert torch.equal(norm.state_dict()[key], value), key


def test_frozen_norm_gives_its_values_to_trainable_parameters():
    norm = FrozenBatchNorm2d(4)
    norm.weight.copy_(torch.arange(4.0))
    norm.running_var.fill_(3)
    converted = convert(pair(norm), "EvoNormB0").model
    assert torch.equal(converted[1].weight, torch.arange(4.0))
    assert torch.equal(converted[1].running_var, torch.full((4,), 3.0))
    assert all(p.requires_grad for p in converted[1].parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype(device, dtype):
    converted = convert(pair().to(device, dtype), "EvoNormB0").model
    for tensor in (*converted[1].parameters(), converted[1].running_var):
        assert (tensor.device.type, tensor.dtype) == (device, dtype)
    without_affine = nn.Sequential(conv(), nn.InstanceNorm2d(4), nn.ReLU()).to(device, dtype)
    weight = convert(without_affine, "EvoNormS0").model[1].weight
    assert (weight.device.type, weight.dtype) == (device, dtype)


def test_mode_and_requires_grad():
    model = nn.Sequential(pair(), pair(), Functional(4))
    model[0].eval()
    model[0].requires_grad_(False)
    model[2].eval()
    converted = convert(nn.Sequential(model[0], conv(4, 3), model[1], model[2]), "EvoNormS0").model
    assert [m.training for m in (converted[0][1], converted[2][1], converted[3].bn)] == [
        *(False, True, False)
    ]
    assert not any(p.requires_grad for p in converted[0].parameters())
    assert all(p.requires_grad for p in converted[2].parameters())
    assert not converted[3].training


def test_model_given_stays_as_it_was():
    model = nn.Sequential(conv(), Residual(), Functional(4)).eval()
    before = copy.deepcopy(model)
    x = torch.rand(1, 3, 6, 6)
    expected = model(x)
    convert(model, "EvoNormS0")
    assert str(model) == str(before)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(model(x), expected)


def test_weights_of_the_rest_load_by_the_same_names():
    model = nn.Sequential(conv(), Residual(), Functional(4))
    converted = convert(model, "EvoNormS0").model
    kept = {key for key in model.state_dict() if "running" not in key and "num_batches" not in key}
    assert kept <= set(converted.state_dict())
    assert [key for key in converted.state_dict() if key in kept] == [
        key for key in model.state_dict() if key in kept
    ]


def test_norm_under_two_names_of_which_one_is_called():
    model = Functional()
    model.alias = model.bn
    converted = convert(model, "EvoNormS0").model
    assert converted.alias is converted.bn
