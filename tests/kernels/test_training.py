"""Training with the fused kernels."""

import pytest
import torch
from torch import nn

from evonorm_plugins import get_norm_act


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0"])
def test_training_follows_plain_torch(name):
    """200 steps of a small classifier: the losses of fused and plain layers stay together."""

    def losses(impl):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), get_norm_act(name, 16, groups=4, impl=impl))
            if name == "EvoNormS0"
            else (nn.Conv2d(3, 16, 3, 2, 1), get_norm_act(name, 16, impl=impl)),
            *(nn.Conv2d(16, 32, 3, 2, 1), get_norm_act(name, 32, impl=impl)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        waves = torch.sin(torch.arange(16.0) * torch.tensor([0.4, 0.8, 1.2, 1.6])[:, None])
        result = []
        for _ in range(200):
            label = torch.randint(4, (16,))
            image = waves[label][:, None, None, :] + torch.randn(16, 3, 16, 16)
            loss = nn.functional.cross_entropy(model(image), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.append(loss.item())
        return torch.tensor(result)

    plain, fused = losses("torch"), losses("auto")
    torch.testing.assert_close(fused[:20], plain[:20], rtol=1e-3, atol=1e-4)
    smooth = nn.functional.avg_pool1d(torch.stack([plain, fused]), 20)
    assert (smooth[1] - smooth[0]).abs().max() < 0.05
    assert smooth[:, -1].max() < 0.5 * smooth[:, 0].min()
