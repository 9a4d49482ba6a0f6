"""The average of weights: the decay of every step, statistics averaged, counters copied."""

import pytest
import torch

from evonorm_plugins.training.ema import EMA


def names_of(layer):
    return ("running_mean",) if isinstance(layer, torch.nn.BatchNorm1d) else ()


def layer(value):
    module = torch.nn.BatchNorm1d(1)
    for tensor in (module.weight.data, module.running_mean, module.running_var):
        tensor.fill_(value)
    return module


def test_weights_and_the_statistics_that_are_named():
    module = layer(0.0)
    ema = EMA(module, 0.75, names_of)
    for tensor in (module.weight.data, module.running_mean, module.running_var):
        tensor.fill_(4.0)
    module.num_batches_tracked.fill_(9)
    ema.update(1)
    assert ema.module.weight.item() == ema.module.running_mean.item() == 1.0
    assert ema.module.running_var.item() == 4.0  # not named: copied
    assert ema.module.num_batches_tracked.item() == 9
    assert not ema.module.training
    assert not ema.module.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "decays"),
    [
        ({"start": 2}, [0.0, 0.0, 0.9, 0.9]),
        ({"warmup": True}, [2 / 11, 3 / 12, 4 / 13, 5 / 14]),
    ],
)
def test_decays(options, decays):
    module, expected = layer(0.0), 0.0
    ema = EMA(module, 0.9, names_of, **options)
    for step, decay in enumerate(decays, 1):
        module.weight.data.fill_(float(step))
        ema.update(step)
        expected = decay * expected + (1 - decay) * step
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
