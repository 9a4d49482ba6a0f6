"""verify() sees what follows the layers of a model that runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn

from evonorm_plugins import EvoNormB0, EvoNormS0
from evonorm_plugins.errors import InputError
from evonorm_plugins.integrations.detectron2 import verify


def image():
    return torch.randn(2, 8, 6, 6)


class Followed(nn.Module):
    def __init__(self, function, apply_act=True):
        super().__init__()
        self.norm, self.function = EvoNormS0(8, apply_act=apply_act), function

    def forward(self, x):
        return self.function(self.norm(x))


ACTIVATIONS = {
    "function": F.relu,
    "in place": F.relu_,
    "method": torch.Tensor.relu,
    "module": nn.ReLU6(),
    "parameters": nn.PReLU(8),
    "clamp": lambda y: y.clamp(min=0),
    "swish": lambda y: y * torch.sigmoid(1.7 * y),
    "hard swish": lambda y: y * F.relu6(y + 3) / 6,
    "gelu": lambda y: 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.04 * y**3))),
    "where": lambda y: torch.where(y > 0, y, 0.1 * y),
    "dropout": lambda y: F.relu(F.dropout2d(y)),
    "flatten": lambda y: F.elu(y.flatten(1)),
    "concatenation": lambda y: F.relu(torch.cat([y, torch.ones_like(y)], 1)),
    "pooling": lambda y: F.relu(F.max_pool2d(y, 2)),
}
OTHERS = {
    "addition": lambda y: F.relu(y + torch.ones_like(y)),
    "in place": lambda y: F.relu(y.add_(torch.ones_like(y))),
    "convolution": lambda y: F.relu(F.conv2d(y, torch.ones(8, 8, 1, 1))),
    "nothing": lambda y: y,
}


@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_seen(name, apply_act):
    report = verify(Followed(ACTIVATIONS[name], apply_act), image())
    found, other = report.twice, report.unnormalized
    if not apply_act:
        found, other = other, found
    assert {a.layer for a in found} == {"norm"}
    assert other == ()
    assert not report.ok


@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_an_activation_of_something_else_is_none(name, apply_act):
    report = verify(Followed(OTHERS[name], apply_act), image())
    assert report.ok
    assert (report.with_activation, report.without_activation)[not apply_act] == ("norm",)


@pytest.mark.parametrize("gate", [torch.sigmoid, lambda y: 2 * F.hardsigmoid(y), nn.Tanh()])
def test_gates_want_the_affine_transform(gate):
    assert verify(Followed(gate, apply_act=False), image()).ok
    assert len(verify(Followed(gate), image()).twice) == 1


def test_the_report_says_where():
    model = nn.Sequential(Followed(F.relu), Followed(F.relu, apply_act=False), nn.BatchNorm2d(8))
    report = verify(model, image())
    assert report.other_norms == {"2": "BN"}
    shown = str(report)
    assert "activated twice: 1\n  0.norm: relu in the forward of 0\n" in shown
    assert "activated, but not normalized: 1\n  1.norm: relu in the forward of 1\n" in shown


def test_layers_that_do_not_run_are_no_proof():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.spare = EvoNormS0(8), EvoNormS0(8)

        def forward(self, x):
            return self.norm(x)

    report = verify(Idle(), image())
    assert report.not_run == ("spare",)
    assert not report.ok


def test_a_detector_in_training_is_left_as_it_was(small_cfg, train_batch):
    model = build_model(small_cfg("EvoNormB0"))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = verify(model, train_batch())
    assert report.ok
    # stem, one for each of eight blocks, two convolutions in either head; FPN, blocks, shortcuts
    assert (len(report.with_activation), len(report.without_activation)) == (13, 19)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_cannot_be_verified():
    with pytest.raises(InputError, match=r"a model is an nn.Module, not 'model'"):
        verify("model", image())
    with pytest.raises(InputError, match=r"Sequential has no norm-activation layer"):
        verify(nn.Sequential(nn.BatchNorm2d(8)), image())
    scripted = torch.jit.trace(nn.ReLU(), image())
    with pytest.raises(InputError, match=r"1 \(\w+\) is scripted"):
        verify(nn.Sequential(EvoNormB0(8), scripted), image())
