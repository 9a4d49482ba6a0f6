"""``TEST.PRECISE_BN``: Detectron2's own hook, with the layers that have a moving variance."""

import copy
import importlib.util

import fvcore.nn
import pytest
import torch
from detectron2.engine.hooks import PreciseBN
from detectron2.modeling import build_model
from fvcore.nn import precise_bn
from torch import nn

from evonorm_plugins import EvoNormB0, EvoNormB1, EvoNormS0, SyncEvoNormB0, get_norm_act
from evonorm_plugins.layers import BatchStatistics

BATCHES = [(3, 9, 8), (1, 5, 4), (2, 12, 7)]  # N, H, W


def network(*norms):
    """A convolution before every norm."""
    layers = [(nn.Conv2d(3 if k == 0 else 6, 6, 3, padding=1), n) for k, n in enumerate(norms)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def draw_batches(sizes=BATCHES, seed=0):
    """Batches whose mean and variance are not the same."""
    torch.manual_seed(seed)
    return [torch.randn(n, 3, h, w) * (k + 1) + k for k, (n, h, w) in enumerate(sizes)]


def run_hook(model, batches):
    PreciseBN(0, model, batches, len(batches)).update_stats()


def inputs_of(model, batches):
    """``{name: (C, elements) in float64}``: all that each layer sees when a copy runs the batches.

    In training mode a layer's output does not depend on its moving statistics, so neither do these.
    """
    model = copy.deepcopy(model)
    seen = {}

    def collect(name):
        def hook(_, inputs):
            x = inputs[0].double().transpose(0, 1).flatten(1)
            seen[name] = torch.cat([seen[name], x], 1) if name in seen else x

        return hook

    for name, layer in model.named_modules():
        if hasattr(layer, "running_var"):
            layer.register_forward_pre_hook(collect(name))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return seen


def population_variance(x):
    return (x - x.mean(1, keepdim=True)).square().mean(1)


def assert_precise(layer, x):
    """float32 holds the moving variance, hence the tolerance."""
    torch.testing.assert_close(
        layer.running_var.double(), population_variance(x), rtol=1e-5, atol=0
    )


def pristine_update_bn_stats():
    """fvcore's function as it is without this package."""
    spec = importlib.util.spec_from_file_location("pristine_precise_bn", precise_bn.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.update_bn_stats


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormB1", "EvoNormB2"])
def test_variance_of_everything_seen(name):
    model = network(get_norm_act(name, 6), get_norm_act(name, 6))
    batches = draw_batches()
    seen = inputs_of(model, batches)
    assert {k: x.shape for k, x in seen.items()} == dict.fromkeys(
        ["1", "3"], (6, 3 * 72 + 20 + 2 * 84)
    )
    before = copy.deepcopy(model.state_dict())
    run_hook(model, batches)
    for key, value in model.state_dict().items():
        assert value.equal(before[key]) == (not key.endswith("running_var")), key
    for key, x in seen.items():
        assert_precise(model.get_submodule(key), x)
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_mean_of_squares_where_the_layer_divides_by_that():
    model = network(get_norm_act("RS + rej", 6))
    batches = draw_batches()
    run_hook(model, batches)
    expected = inputs_of(model, batches)["1"].square().mean(1)
    torch.testing.assert_close(model[1].running_var.double(), expected, rtol=1e-5, atol=0)


def test_together_with_batch_normalization():
    model = network(nn.BatchNorm2d(6), EvoNormB0(6), get_norm_act("BN-ReLU", 6), EvoNormB1(6))
    batches = draw_batches()
    seen = inputs_of(model, batches)
    assert list(seen) == ["1", "3", "5.norm", "7"]
    run_hook(model, batches)
    for name, x in seen.items():
        layer = model.get_submodule(name)
        # fvcore subtracts the squared mean from the mean of squares, in float32.
        tolerance = 1e-5 if isinstance(layer, BatchStatistics) else 1e-4
        expected = population_variance(x)
        torch.testing.assert_close(layer.running_var.double(), expected, rtol=tolerance, atol=0)
        if isinstance(layer, nn.BatchNorm2d):
            mean = x.mean(1)
            torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
            assert layer.momentum == 0.1


def test_batch_normalization_alone_as_without_this_package():
    stock = network(nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    ours = copy.deepcopy(stock)
    batches = draw_batches()
    pristine_update_bn_stats()(stock, batches, len(batches))
    run_hook(ours, batches)
    expected = stock.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for key, value in ours.state_dict().items():
        assert value.equal(expected[key]), key
    assert not stock[1].running_var.eq(1).any()


def test_layers_without_batch_statistics_are_left_alone():
    frozen, evaluated, affine = EvoNormB0(6).freeze(), EvoNormB0(6), EvoNormB0(6, apply_act=False)
    model = network(frozen, evaluated, affine, EvoNormS0(6), EvoNormB0(6))
    evaluated.eval()
    batches = draw_batches()
    expected = inputs_of(model, batches)["9"]
    run_hook(model, batches)
    for layer in (frozen, evaluated, affine):
        assert layer.running_var.eq(1).all()
    assert frozen.frozen
    assert not evaluated.training
    assert_precise(model[9], expected)


def test_nothing_to_do():
    model = network(EvoNormS0(6), EvoNormB0(6).freeze())
    before = copy.deepcopy(model.state_dict())
    never = iter(())
    PreciseBN(0, model, never, 2).update_stats()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_one_batch_with_large_mean():
    """E[x^2] - E[x]^2 in float32 would have nothing left of a variance of 1e-4."""
    model = nn.Sequential(EvoNormB0(3))
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 8, 8) * 1e-2 + 1e3 for _ in range(3)]
    run_hook(model, batches)
    assert_precise(model[0], inputs_of(model, batches)["0"])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite(value):
    """The channel keeps its moving average, which leaves such batches out."""
    model = nn.Sequential(EvoNormB0(3))
    batches = [torch.randn(2, 3, 4, 4) for _ in range(2)]
    batches[1][0, 1, 2, 3] = value
    seen = inputs_of(model, batches)["0"]
    run_hook(model, batches)
    expected = population_variance(seen)
    expected[1] = 0.9 + 0.1 * population_variance(seen[:, :32])[1]
    torch.testing.assert_close(model[0].running_var.double(), expected, rtol=1e-5, atol=0)


def test_layer_used_twice_and_layer_not_used():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = EvoNormB0(3), EvoNormB0(3)

        def forward(self, x):
            return self.norm(self.norm(x))

    model = Twice()
    batches = draw_batches()
    seen = inputs_of(model, batches)
    run_hook(model, batches)
    assert_precise(model.norm, seen["norm"])
    assert model.unused.running_var.eq(1).all()


def test_detector(small_cfg, train_batch, draw_norms):
    """The layers of the heads see regions that are drawn anew, so those of the backbone only."""
    model = draw_norms(build_model(small_cfg("EvoNormB0")))
    batches = [train_batch(images=2), train_batch(size=96), train_batch(objects=0)]
    seen = inputs_of(model.backbone, [model.preprocess_image(b).tensor for b in batches])
    run_hook(model, batches)
    compared = 0
    for name, x in seen.items():
        layer = model.backbone.get_submodule(name)
        if layer.apply_act:
            assert_precise(layer, x)
            compared += 1
    assert compared == 9
    for layer in (model.roi_heads.box_head.conv1.norm, model.roi_heads.mask_head[0].norm):
        assert layer.running_var.isfinite().all()


def statistics_of_a_rank(rank, state, batches):
    model = network(SyncEvoNormB0(6), EvoNormB0(6), SyncEvoNormB0(6))
    model.load_state_dict(state)
    seen = inputs_of(model, batches[rank])
    run_hook(model, batches[rank])
    return seen, model.state_dict()


def test_two_ranks_with_different_numbers_of_elements(run_ranks):
    """The union of what both ranks saw, the plain layer's too; both keep the same numbers."""
    model = network(SyncEvoNormB0(6), EvoNormB0(6), SyncEvoNormB0(6))
    before = copy.deepcopy(model.state_dict())
    batches = [draw_batches(), draw_batches([(1, 3, 3), (4, 6, 9), (0, 4, 4)], seed=1)]
    batches[1][1] += 20
    (first_seen, first), (second_seen, second) = run_ranks(statistics_of_a_rank, before, batches)
    for name, x in first_seen.items():
        union = torch.cat([x, second_seen[name]], 1)
        assert second_seen[name].shape[1] == 9 + 4 * 54
        model.get_submodule(name).running_var.copy_(first[f"{name}.running_var"])
        assert_precise(model.get_submodule(name), union)
    for key, value in first.items():
        assert value.equal(second[key]), key
        assert value.equal(before[key]) == (not key.endswith("running_var")), key


def test_hooks_of_detectron2_see_these_functions():
    from detectron2.engine import defaults, hooks

    layers = [nn.BatchNorm2d(6), EvoNormB0(6), EvoNormS0(6), EvoNormB0(6).freeze()]
    for module in (defaults, hooks, fvcore.nn, precise_bn):
        assert module.get_bn_modules(network(*layers)) == layers[:2]
        assert module.get_bn_modules is precise_bn.get_bn_modules
    model, batches = network(EvoNormB0(6)), draw_batches()
    seen = inputs_of(model, batches)
    hooks.update_bn_stats(model, batches, len(batches))
    assert_precise(model[1], seen["1"])
