"""The trainer: non-finite losses, clipping, costs."""

import csv

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from evonorm_plugins.errors import NonFiniteError
from evonorm_plugins.integrations.detectron2.trainer import StepRecord, Trainer
from evonorm_plugins.integrations.non_finite import first_non_finite


@pytest.fixture
def trainer(small_cfg, train_batch, tmp_path, monkeypatch):
    """A trainer of EvoNormS0 on one batch that repeats."""
    monkeypatch.setattr(
        Trainer, "build_train_loader", classmethod(lambda cls, cfg: Repeat(train_batch()))
    )
    cfg = small_cfg("EvoNormS0", "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 3)
    cfg.DATASETS.TEST = ()
    return Trainer(cfg)


class Repeat:
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def test_it_trains_and_measures(trainer, tmp_path):
    trainer.train()
    with open(tmp_path / "steps.csv") as f:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert all(0 < row["total_loss"] < 10 for row in rows)
    cost = trainer.steps.summary()
    assert len(trainer.steps.seconds) == 3
    assert cost["seconds_per_iteration"] > 0
    assert cost["peak_memory_mib"] > 100


def test_a_parameter_that_is_not_finite_is_named(trainer):
    layer = trainer.model.backbone.bottom_up.res3[0].conv1.norm
    with torch.no_grad():
        layer.v[0] = float("nan")
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    said = str(error.value)
    assert "not finite at iteration 0" in said
    assert "The parameter backbone.bottom_up.res3.0.conv1.norm.v is not finite" in said
    assert f"Learning rate {trainer.optimizer.param_groups[0]['lr']}" in said
    assert "image ids [1]" in said


def test_the_first_layer_that_overflows_is_named(trainer):
    conv = trainer.model.backbone.bottom_up.res4[1].conv2
    with torch.no_grad():
        conv.norm.bias.fill_(3e38)
        conv.norm.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"res4.1.conv2.norm \(EvoNormS0\)"):
        trainer.train()


def test_nothing_is_saved_after_a_failure(trainer, tmp_path):
    with torch.no_grad():
        trainer.model.backbone.bottom_up.stem.conv1.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert not list(tmp_path.glob("*.pth"))


def test_what_cannot_be_reproduced_is_said(small_cfg, train_batch):
    model = build_model(small_cfg("EvoNormS0"))
    with EventStorage():
        assert "No layer's output is non-finite" in first_non_finite(model, train_batch())


def test_clipping_the_norm_of_all_gradients(small_cfg):
    cfg = small_cfg(
        "EvoNormS0",
        "SOLVER.CLIP_GRADIENTS.ENABLED", True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5,
        "SOLVER.BASE_LR", 1.0,
        "SOLVER.MOMENTUM", 0.0,
        "SOLVER.WEIGHT_DECAY", 0.0,
    )  # fmt: skip
    model = nn.Linear(3, 3)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = Trainer.build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm() == pytest.approx(0.5, rel=1e-5)


def test_cost_before_the_first_step():
    assert StepRecord("unused").summary()["seconds_per_iteration"] is None
