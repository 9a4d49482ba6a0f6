"""Images without objects, heads without regions, one process with them and one without."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_box_head, build_mask_head, build_model
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

import evonorm_plugins.integrations.detectron2  # noqa: F401
from evonorm_plugins.layers import BatchStatistics, NormAct

NORMS = ["EvoNormS0", "EvoNormB0", "SyncEvoNormB0"]
PAPER = (
    *("MODEL.BACKBONE.NAME", "build_resnet_paper_fpn_backbone"),
    *("MODEL.RPN.HEAD_NAME", "PaperRPNHead"),
    *("MODEL.ROI_HEADS.NAME", "PaperROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "PaperBoxHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "PaperMaskHead"),
)


def moving_variances(model):
    """Those of the layers that use them: where no activation follows they stay as they were."""
    return {
        name: layer.running_var.clone()
        for name, layer in model.named_modules()
        if isinstance(layer, BatchStatistics) and layer.apply_act
    }


@pytest.mark.parametrize("layout", [(), PAPER], ids=["stock", "paper"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("head", ["box", "mask"])
def test_head_without_regions(head, norm, layout, small_cfg, draw_norms):
    cfg = small_cfg(norm, *layout)
    if head == "box":
        model = draw_norms(build_box_head(cfg, ShapeSpec(32, 7, 7)))
        run, shape = model, (64,)
    else:
        model = draw_norms(build_mask_head(cfg, ShapeSpec(32, 14, 14)))
        run, shape = model.layers, (5 if layout else 4, 28, 28)
    # The paper's heads also have one behind the fully connected layer or the deconvolution.
    layers = 3 if layout else 2
    assert sum(isinstance(m, NormAct) for m in model.modules()) == layers
    before = moving_variances(model)
    assert len(before) == (0 if norm == "EvoNormS0" else layers)
    size = 7 if head == "box" else 14
    for training in (True, False):
        x = torch.zeros(0, 32, size, size, requires_grad=True)
        y = run(x) if model.train(training) else None
        assert y.shape == (0, *shape)
        y.sum().backward()
        assert x.grad.shape == x.shape
    for name, p in model.named_parameters():
        assert p.grad.eq(0).all(), name
    for name, value in moving_variances(model).items():
        assert value.equal(before[name]), name


def step(model, batch):
    """Losses and gradients of a training step."""
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {name: loss.item() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize("layout", [(), PAPER], ids=["stock", "paper"])
@pytest.mark.parametrize("norm", NORMS)
def test_training_step_without_objects(norm, layout, small_cfg, train_batch, draw_norms):
    model = draw_norms(build_model(small_cfg(norm, *layout)))
    before = moving_variances(model)
    losses, gradients = step(model, train_batch(objects=0))
    assert losses["loss_mask"] == 0
    assert losses["loss_cls"] > 0
    assert all(torch.tensor(loss).isfinite() for loss in losses.values())
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert not (".mask_head." in name and gradient.any()), name
    assert gradients["backbone.bottom_up.stem.conv1.norm.weight"].any()
    for name, value in moving_variances(model).items():
        assert value.equal(before[name]) == (".mask_head." in name), name


def detectors_side_by_side(rank, cfg, batches):
    """Two steps of data parallel training; ``batches[rank]`` holds a batch for each."""
    torch.manual_seed(0)
    model = build_model(cfg)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    torch.manual_seed(rank)  # each samples its own regions
    results = []
    for batch in batches[rank]:
        losses, _ = step(parallel, batch)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((losses, gradients, moving_variances(model)))
    return results


def test_mask_head_with_regions_on_one_rank_and_on_none(small_cfg, train_batch, run_ranks):
    cfg = small_cfg("SyncEvoNormB0")
    objects, nothing = train_batch(), train_batch(objects=0)
    nothing[0]["image"] = nothing[0]["image"].flip(0)
    first, second = run_ranks(detectors_side_by_side, cfg, [[objects, nothing], [nothing, nothing]])
    for rank, results in enumerate((first, second)):
        for k, (losses, gradients, variances) in enumerate(results):
            has_regions = rank == k == 0
            assert (losses["loss_mask"] > 0) == has_regions
            assert all(torch.tensor(loss).isfinite() for loss in losses.values())
            for name, gradient in gradients.items():
                assert gradient.isfinite().all(), name
                # Those of rank 0, averaged over both.
                if ".mask_head." in name:
                    assert gradient.any() == (k == 0), (name, k)
            _, others, other_variances = second[k]
            for name, gradient in gradients.items():
                assert gradient.equal(others[name]), name
            assert len(variances) == 1 + 8 + 2 + 2  # stem, blocks, box head, mask head
            for name, value in variances.items():
                assert value.isfinite().all()
                assert value.equal(other_variances[name]), name
    # The second step had regions on no rank and left the mask head's statistics.
    for name, value in first[1][2].items():
        assert value.equal(first[0][2][name]) == (".mask_head." in name), name
    assert any(v.ne(1).all() for n, v in first[0][2].items() if ".mask_head." in n)
