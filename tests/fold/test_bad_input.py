"""What cannot be folded at all is refused."""

import pytest
import torch
from torch import nn

from evonorm_plugins import fold_for_inference, layers


def test_training_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"Sequential is in training mode; call model.eval\(\)"):
        fold_for_inference(model)
    model.eval()[1].train()
    with pytest.raises(ValueError, match=r"BatchNorm2d \('1'\) is in training mode"):
        fold_for_inference(model)


def test_no_module():
    with pytest.raises(TypeError, match="not a function"):
        fold_for_inference(lambda x: x)
    scripted = torch.jit.script(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(TypeError, match="not a RecursiveScriptModule"):
        fold_for_inference(scripted)


def test_flow_that_depends_on_data(flow):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), Branch())).eval()
    with pytest.raises(ValueError, match=r"cannot trace Sequential in '1\.1': .*control flow"):
        fold_for_inference(model)


def test_meta_device():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().to("meta")
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device"):
        fold_for_inference(model)


def test_model_without_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 7, 5)
    folded = fold_for_inference(model)
    assert torch.equal(folded(x), model(x))
    assert folded.fold_report.norms == ()


def test_layer_by_itself():
    x = torch.randn(2, 4, 7, 5)
    for layer in (layers.EvoNormS0(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)):
        folded = fold_for_inference(layer.eval())
        assert type(folded) is type(layer)
        assert torch.equal(folded(x), layer(x))


def test_conditional_layer_is_left(flow):
    model = flow(
        lambda m, x: m.norm(m.conv(x), x.mean((2, 3))),
        conv=nn.Conv2d(3, 4, 3),
        norm=layers.ConditionalNormAct(layers.BNReLU(4), 3),
    ).eval()
    folded = fold_for_inference(model)
    assert folded.fold_report.norms[0].reason == "gamma and beta come with each call"
    x = torch.randn(2, 3, 7, 5)
    assert torch.equal(folded(x), model(x))
