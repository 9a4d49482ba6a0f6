"""Checkpoints of another norm, or cut off, are refused with a message that names both."""

import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2 import norms_of
from evonorm_plugins.integrations.detectron2.checkpoint import check_norms
from evonorm_plugins.layers import EvoNormB0, EvoNormS0, EvoNormS1, SyncEvoNormB0


def save(model, folder):
    DetectionCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.mark.parametrize(
    ("trained", "configured", "said"),
    [
        ("BN", "EvoNormS0", "BN in the checkpoint, EvoNormS0"),
        ("GN", "EvoNormB0", r"GN\(groups=32\) in the checkpoint, EvoNormB0"),
        ("EvoNormS0", "EvoNormB0", r"EvoNormS0\(groups=32\) in the checkpoint, EvoNormB0"),
        ("EvoNormB0", "BN", "EvoNormB0 in the checkpoint, BN in the model"),
        ("EvoNormS1", "EvoNormS2", r"EvoNormS1\(groups=32\) in the checkpoint, EvoNormS2"),
        ("EvoNormS0(groups=8)", "EvoNormS0", r"groups=8\) in the checkpoint, .*groups=32\)"),
        ("BN", "BN-ReLU", "BN in the checkpoint, BNReLU in the model"),
    ],
)
def test_another_norm_is_refused(small_cfg, tmp_path, trained, configured, said):
    path = save(build_model(small_cfg(trained)), tmp_path)
    model = build_model(small_cfg(configured))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"trained with another norm: .*{said}"):
        DetectionCheckpointer(model).load(path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "norm", ["BN", "GN", "EvoNormS0", "EvoNormB0", "FRN", "BN-Swish", "EvoNormS2"]
)
def test_the_same_norm_loads(small_cfg, tmp_path, norm):
    torch.manual_seed(0)
    path = save(build_model(small_cfg(norm)), tmp_path)
    torch.manual_seed(1)
    model = build_model(small_cfg(norm))
    DetectionCheckpointer(model).load(path)
    saved = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())


def plain(model):
    """A checkpoint that says nothing about norms, as other programs write it."""
    return {"model": model.state_dict()}


def test_without_a_record_the_keys_tell():
    with pytest.raises(CheckpointError, match="1: BN in the checkpoint, EvoNormS0"):
        check_norms(
            nn.Sequential(nn.Conv2d(3, 8, 1), EvoNormS0(8)),
            plain(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))),
        )
    with pytest.raises(CheckpointError, match="EvoNormB0 in the checkpoint"):
        check_norms(nn.Sequential(EvoNormS0(8)), plain(nn.Sequential(EvoNormB0(8))))
    with pytest.raises(CheckpointError, match="GN, LN, EvoNormS1, EvoNormS2 or"):
        check_norms(nn.Sequential(EvoNormS0(8)), plain(nn.Sequential(nn.GroupNorm(8, 8))))
    check_norms(nn.Sequential(EvoNormS1(8)), plain(nn.Sequential(EvoNormS1(8))))
    check_norms(nn.Sequential(SyncEvoNormB0(8)), plain(nn.Sequential(EvoNormB0(8))))
    check_norms(nn.Sequential(nn.SyncBatchNorm(8)), plain(nn.Sequential(nn.BatchNorm2d(8))))


def test_norms_that_the_checkpoint_does_not_have_are_no_mismatch():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), EvoNormS0(8))
    check_norms(model, {"model": {"0.weight": model[0].weight}})


def test_record_of_saved_norms(small_cfg, tmp_path):
    model = build_model(small_cfg("EvoNormS0"))
    saved = torch.load(save(model, tmp_path), weights_only=True)
    assert saved["norms"] == norms_of(model)
    assert saved["norms"]["backbone.bottom_up.stem.conv1.norm"] == "EvoNormS0(groups=32)"


def test_pretrained_batch_norm_backbone_is_refused(small_cfg, tmp_path):
    # As in the model zoo's ImageNet files: the backbone alone, without its name, matched by guess.
    source = build_model(small_cfg("BN")).backbone.bottom_up.state_dict()
    content = {"model": {k: v.numpy() for k, v in source.items()}, "__author__": "test"}
    content["matching_heuristics"] = True
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content))
    DetectionCheckpointer(build_model(small_cfg("BN"))).load(str(path))
    with pytest.raises(CheckpointError, match="BN in the checkpoint, EvoNormS0"):
        DetectionCheckpointer(build_model(small_cfg("EvoNormS0"))).load(str(path))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_half_written_checkpoint(small_cfg, tmp_path, kept):
    model = build_model(small_cfg("EvoNormS0"))
    path = tmp_path / "model.pth"
    save(model, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*model.pth \(\d+ bytes\)"):
        DetectionCheckpointer(model).load(str(path))
