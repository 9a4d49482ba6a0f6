"""What the tests of folding share: parameters drawn, folding checked in float64."""

import pytest
import torch
from torch import nn

from evonorm_plugins import fold_for_inference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def draw():
    """``draw(model)``: in eval mode and float64, every gamma, beta, v and statistic drawn; a gamma
    may have either sign."""

    def draw(model):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.8)
            for key, buffer in model.named_buffers():
                if key.endswith("running_var"):
                    buffer.uniform_(0.2, 3)
                elif key.endswith("running_mean"):
                    buffer.normal_()
        return model.double().eval()

    return draw


@pytest.fixture(scope="session")
def check(draw):
    """``check(model, x)``: parameters drawn and folded, and the outputs are the same.

    Returns the folded model, and by how much its number of parameters fell.
    """

    def check(model, *shape):
        model = draw(model)
        x = torch.randn(shape, dtype=torch.float64)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            expected = model(x)
            folded = fold_for_inference(model)
            found = folded(x)
            again = model(x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert expected.std() > 1e-3  # not constant, which anything would equal
        assert torch.equal(again, expected)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert type(folded) is type(model)
        assert not any(module.training for module in folded.modules())
        fell = sum(p.numel() for p in model.parameters())
        fell -= sum(p.numel() for p in folded.parameters())
        report = folded.fold_report
        assert report.parameters_before - report.parameters_after == fell
        return folded, fell

    return check


class Function(nn.Module):
    """The modules given by name, and a forward pass ``function(self, x)``."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


@pytest.fixture(scope="session")
def flow():
    """``flow(lambda m, x: m.norm(m.conv(x)), conv=..., norm=...)``: a model."""
    return Function
