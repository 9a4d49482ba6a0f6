"""Training under autocast in half precision, on the CPU and so without a gradient scaler."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from evonorm_plugins.layers import BatchStatistics, NormAct

DTYPES = [torch.bfloat16, torch.float16]
# Fewer channels: a backward pass in float16 is slow on a CPU.
NARROW = (
    *("MODEL.RESNETS.DEPTH", 50),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
)


def norms_of(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, NormAct)}


def record_dtypes(model):
    """``{name of a norm: (dtype of its input, dtype of its output)}``, filled when it runs."""
    seen = {}
    for name, layer in norms_of(model).items():
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update(
                {name: (inputs[0].dtype, output.dtype)}
            )
        )
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_detector_trains(norm, dtype, small_cfg, train_batch, draw_norms):
    model = draw_norms(build_model(small_cfg(norm, *NARROW)))
    seen = record_dtypes(model)
    statistics = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_var")}
    assert len(statistics) == (len(norms_of(model)) if norm == "EvoNormB0" else 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        with EventStorage(), torch.autocast("cpu", dtype):
            losses = model(train_batch())
        assert len(losses) == 5
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert p.grad.dtype == torch.float32, name
            assert p.grad.isfinite().all(), name
        for name, layer in norms_of(model).items():
            for key in ("v", "weight", "bias") if layer.apply_act else ("weight", "bias"):
                assert getattr(layer, key).grad.any(), (name, key)
        optimizer.step()
    assert seen == dict.fromkeys(norms_of(model), (dtype, dtype))
    buffers = dict(model.named_buffers())
    for name, old in statistics.items():
        assert buffers[name].dtype == torch.float32
        assert buffers[name].isfinite().all()
        assert buffers[name].equal(old) != model.get_submodule(name.rpartition(".")[0]).apply_act


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
@torch.no_grad()
def test_backbone_agrees_with_single_precision(norm, dtype, small_cfg, draw_norms):
    """Also where the squares of the activations are beyond half precision's largest number."""
    model = draw_norms(build_model(small_cfg(norm, *NARROW)).backbone)
    model.bottom_up.stem.conv1.weight.data *= 4000
    inside = []
    model.bottom_up.stem.conv1.norm.register_forward_hook(lambda _, x, y: inside.append(x[0]))
    image = torch.randn(2, 3, 64, 64)

    def run():
        for layer in norms_of(model).values():
            if isinstance(layer, BatchStatistics):
                layer.running_var.fill_(1)
        features = model(image)
        return {
            **{f"feature {name}": f for name, f in features.items()},
            **{f"buffer {n}": b.clone() for n, b in model.named_buffers()},
        }

    expected = run()
    with torch.autocast("cpu", dtype):
        actual = run()
    assert inside[1].dtype == dtype
    assert inside[1].float().square().mean() > torch.finfo(torch.float16).max
    # A few dozen roundings in a row; the relative error is in the Frobenius norm.
    tolerance = 30 * torch.finfo(dtype).eps
    for name, e in expected.items():
        assert (actual[name].float() - e).norm() <= tolerance * e.norm(), name
