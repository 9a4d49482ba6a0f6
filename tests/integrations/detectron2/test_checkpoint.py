"""Checkpoints of another norm are refused, or loaded without their norms; others load as ever."""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from evonorm_plugins import get_norm_act
from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2 import SafeCheckpointer, dropping_norms, norms_of
from evonorm_plugins.integrations.detectron2.checkpoint import check_norms, recorded_norms
from evonorm_plugins.layers import EvoNormB0, EvoNormS0, EvoNormS1, NormAct, SyncEvoNormB0


def save(model, folder, **extra):
    DetectionCheckpointer(model, str(folder)).save("model", **extra)
    return str(folder / "model.pth")


def values(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def norm_and_conv(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm)


@pytest.mark.parametrize(
    ("trained", "configured", "said"),
    [
        ("BN", "EvoNormS0", "BN in the checkpoint, EvoNormS0"),
        ("GN", "EvoNormB0", r"GN, LN, .* affine transform in the checkpoint, EvoNormB0"),
        ("EvoNormS0", "EvoNormB0", r"EvoNormS0\(groups=32\) in the checkpoint, EvoNormB0"),
        ("EvoNormS1", "EvoNormS2", r"EvoNormS1\(groups=32\) in the checkpoint, EvoNormS2"),
        ("EvoNormS0(groups=8)", "EvoNormS0", r"groups=8\) in the checkpoint, .*groups=32\)"),
        ("GN", "EvoNormS1", r"GN, LN or a frozen affine .* the checkpoint, EvoNormS1\(groups=32\)"),
        ("BN", "BN-ReLU", "BN in the checkpoint, BNReLU in the model"),
    ],
)
def test_another_norm_is_refused(small_cfg, tmp_path, trained, configured, said):
    path = save(build_model(small_cfg(trained)), tmp_path)
    model = build_model(small_cfg(configured))
    before, checkpointer = values(model), DetectionCheckpointer(model, str(tmp_path))
    with pytest.raises(CheckpointError, match=f"trained with another norm: .*{said}") as refused:
        checkpointer.load(path)
    assert "dropping_norms" in str(refused.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # The same checkpointer goes on.
    checkpointer.save("again")
    checkpointer.load(str(tmp_path / "again.pth"))


def test_the_commands_refuse_weights_of_these_layers_for_other_models(small_cfg, tmp_path):
    path = save(build_model(small_cfg("EvoNormB0")), tmp_path)
    with pytest.raises(CheckpointError, match="EvoNormB0 in the checkpoint, BN in the model"):
        SafeCheckpointer(build_model(small_cfg("BN"))).load(path)


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


class MyLayerNorm(nn.LayerNorm):
    pass


OTHER_MODELS = [
    (nn.BatchNorm2d(8), nn.GroupNorm(2, 8)),
    (nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)),
    (nn.GroupNorm(4, 8), nn.GroupNorm(2, 8)),
    (nn.LayerNorm(8), MyLayerNorm(8)),
    (EvoNormB0(8), nn.BatchNorm2d(8)),
]


@pytest.mark.parametrize(("source", "target"), OTHER_MODELS, ids=lambda m: type(m).__name__)
def test_models_without_these_layers_load_as_ever(tmp_path, caplog, source, target):
    """The weights and the warnings that torch and Detectron2 give by themselves."""
    path = save(norm_and_conv(source), tmp_path)
    model, plain = norm_and_conv(target), norm_and_conv(target)
    incompatible = plain.load_state_dict(torch.load(path)["model"], strict=False)
    with caplog.at_level(logging.WARNING):
        assert DetectionCheckpointer(model).load(path) == {}
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in values(model).items())
    for keys in incompatible:
        assert all(key.rpartition(".")[2] in caplog.text for key in keys)


class Counter:
    """Somebody's own object, which happens to be called norms."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.mark.parametrize("state", [42, {"epoch": "mine"}, [1.5]])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), EvoNormS0(8)], ids=["BN", "EvoNormS0"])
def test_what_others_call_norms_stays_theirs(tmp_path, norm, state):
    model, mine = norm_and_conv(norm), Counter(state)
    DetectionCheckpointer(model, str(tmp_path), norms=mine).save("model")
    assert torch.load(tmp_path / "model.pth")["norms"] == state
    other = Counter(None)
    DetectionCheckpointer(model, norms=other).load(str(tmp_path / "model.pth"))
    assert other.state == state
    assert DetectionCheckpointer(model).load(str(tmp_path / "model.pth")) == {"norms": state}


def test_files_hold_what_detectron2_puts_there(tmp_path):
    bn, evo = norm_and_conv(nn.BatchNorm2d(8)), norm_and_conv(EvoNormS0(8))
    for model in (bn, evo):
        saved = torch.load(save(model, tmp_path, iteration=3))
        assert set(saved) == {"model", "iteration"}
        assert list(saved["model"]) == list(model.state_dict())
    assert saved["model"]._metadata["1"]["norm"] == "EvoNormS0(groups=8)"
    assert not any("norm" in entry for entry in bn.state_dict()._metadata.values())


def test_leftovers_of_a_load_hold_no_norms(tmp_path):
    """A checkpoint of the past has a key for them, which would go on to describe other weights."""
    model = norm_and_conv(EvoNormS0(8))
    torch.save({"model": dict(model.state_dict()), "norms": norms_of(model)}, tmp_path / "old.pth")
    assert DetectionCheckpointer(model).load(str(tmp_path / "old.pth")) == {}


def test_objects_that_are_no_modules_are_saved_as_ever(tmp_path):
    class Weights:
        def state_dict(self):
            return {"w": torch.ones(1)}

    Checkpointer(Weights(), str(tmp_path)).save("model")
    assert torch.load(tmp_path / "model.pth")["model"] == {"w": torch.ones(1)}


def plain(model):
    """A checkpoint that says nothing about norms, as other programs write it."""
    return {"model": dict(model.state_dict())}


def test_without_a_record_the_keys_tell():
    with pytest.raises(CheckpointError, match="1: BN in the checkpoint, EvoNormS0"):
        check_norms(norm_and_conv(EvoNormS0(8)), plain(norm_and_conv(nn.BatchNorm2d(8))))
    with pytest.raises(CheckpointError, match="EvoNormB0 in the checkpoint"):
        check_norms(nn.Sequential(EvoNormS0(8)), plain(nn.Sequential(EvoNormB0(8))))
    with pytest.raises(CheckpointError, match="GN, LN, EvoNormS1, EvoNormS2 or"):
        check_norms(nn.Sequential(EvoNormS0(8)), plain(nn.Sequential(nn.GroupNorm(8, 8))))
    check_norms(nn.Sequential(EvoNormS1(8)), plain(nn.Sequential(EvoNormS1(8))))
    check_norms(nn.Sequential(SyncEvoNormB0(8)), plain(nn.Sequential(EvoNormB0(8))))
    check_norms(nn.Sequential(nn.SyncBatchNorm(8)), plain(nn.Sequential(nn.BatchNorm2d(8))))


def test_norms_that_the_checkpoint_does_not_have_are_no_mismatch():
    model = norm_and_conv(EvoNormS0(8))
    check_norms(model, {"model": {"0.weight": model[0].weight}})


def test_record_of_saved_norms(small_cfg, tmp_path):
    model = build_model(small_cfg("EvoNormS0", "MODEL.ROI_MASK_HEAD.NORM", "GN"))
    saved = recorded_norms(torch.load(save(model, tmp_path), weights_only=True))
    expected = {k: v for k, v in norms_of(model).items() if not v.startswith("GN")}
    assert saved == expected
    assert saved["backbone.bottom_up.stem.conv1.norm"] == "EvoNormS0(groups=32)"


def test_records_of_the_past_are_understood():
    s1, s2 = (norm_and_conv(get_norm_act(name, 8)) for name in ("EvoNormS1", "EvoNormS2"))
    old = {**plain(s1), "norms": norms_of(s1)}
    check_norms(s1, old)
    with pytest.raises(CheckpointError, match=r"1: EvoNormS1\(groups=8\) in the checkpoint"):
        check_norms(s2, old)
    for foreign in ({"1": 3}, {"elsewhere": "BN"}, [], 42, {}):
        check_norms(s2, {**plain(s1), "norms": foreign})


def zoo_file(model, path, author):
    """A backbone as in the model zoo's files: without its name, matched by guess, arrays of NumPy.

    Caffe2's have names of their own, and batch normalization folded into an affine transform.
    """
    source = {k: v.numpy() for k, v in model.backbone.bottom_up.state_dict().items()}
    content = {"model": source, "__author__": author, "matching_heuristics": True}
    if author == "Caffe2":
        content = {caffe2_name(k): v for k, v in source.items() if k.endswith((".weight", ".bias"))}
    path.write_bytes(pickle.dumps(content))
    return str(path)


def caffe2_name(key):
    """``res2.0.conv1.norm.bias`` to ``res2_0_branch2a_bn_b``."""
    *module, leaf = key.replace("stem.conv1.norm", "res_conv1.norm").split(".")
    name = "_".join(part for part in module if part not in ("stem", "norm"))
    if name.startswith("res") and not name.endswith("res_conv1"):
        for ours, theirs in (("conv1", "branch2a"), ("conv2", "branch2b"), ("shortcut", "branch1")):
            name = name.replace(ours, theirs)
    if "norm" in module:
        return name + {"weight": "_bn_s", "bias": "_bn_b"}[leaf]
    return name + "_w"


@pytest.mark.parametrize("author", ["torchvision", "Caffe2"])
def test_pretrained_batch_norm_backbone_is_refused(small_cfg, tmp_path, author):
    path = zoo_file(build_model(small_cfg("BN")), tmp_path / "R-18.pkl", author)
    DetectionCheckpointer(build_model(small_cfg("BN"))).load(path)
    with pytest.raises(CheckpointError, match="in the checkpoint, EvoNormS0"):
        DetectionCheckpointer(build_model(small_cfg("EvoNormS0"))).load(path)


@pytest.mark.parametrize("kind", ["pth", "torchvision", "Caffe2"])
@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, SafeCheckpointer])
def test_norms_are_dropped_on_purpose(small_cfg, tmp_path, draw_norms, caplog, kind, checkpointer):
    """Convolutions come from the file; every norm keeps what it had; what was dropped is said."""
    torch.manual_seed(1)
    source = build_model(small_cfg("BN"))
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    whole = kind == "pth"
    path = save(source, tmp_path) if whole else zoo_file(source, tmp_path / "w.pkl", kind)
    model = draw_norms(build_model(small_cfg("EvoNormS0")))
    before, theirs = values(model), source.state_dict()
    with dropping_norms(), caplog.at_level(logging.WARNING):
        checkpointer(model).load(path)
    norms = {name for name, m in model.named_modules() if isinstance(m, NormAct)}
    for key, value in model.state_dict().items():
        own = key.rpartition(".")[0] in norms or not (whole or "bottom_up" in key)
        assert torch.equal(value, before[key] if own else theirs[key]), key
    # 20 norms in ResNet-18; 8 in FPN and 4 in the heads.
    n = 32 if whole else 20
    assert f"{n} of the checkpoint's {n} norms are dropped" in caplog.text
    assert "are EvoNormS0(groups=32)" in caplog.text


def test_norms_that_agree_are_not_dropped(caplog):
    source = nn.Sequential(EvoNormS0(8), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    model = nn.Sequential(EvoNormS0(8), EvoNormS0(8), nn.GroupNorm(2, 8))
    for p in source.parameters():
        nn.init.uniform_(p, 2, 3)
    checkpoint = {"model": source.state_dict()}
    with dropping_norms():
        check_norms(model, checkpoint)
    assert {key[0] for key in checkpoint["model"]} == {"0", "2"}
    assert "1 of the checkpoint's 3 norms are dropped" in caplog.text
    with pytest.raises(CheckpointError):  # no longer
        check_norms(model, {"model": source.state_dict()})


class Settings:
    pass


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), EvoNormS0(8)], ids=["BN", "EvoNormS0"])
def test_files_that_cannot_be_read_raise_what_torch_raises(tmp_path, norm):
    """In the user's own checkpointer; its except clauses go on to work."""
    model = norm_and_conv(norm)
    path = tmp_path / "model.pth"
    save(model, tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError, match="failed finding central directory"):
        DetectionCheckpointer(model).load(str(path))
    torch.save({"model": model.state_dict(), "args": Settings()}, path)
    with pytest.raises(pickle.UnpicklingError, match=r"add_safe_globals|weights_only"):
        DetectionCheckpointer(model).load(str(path))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_half_written_checkpoint(small_cfg, tmp_path, kept):
    model = build_model(small_cfg("EvoNormS0"))
    path = tmp_path / "model.pth"
    save(model, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*model.pth \(\d+ bytes\)"):
        SafeCheckpointer(model).load(str(path))
    path.write_bytes(content)
    SafeCheckpointer(model).load(str(path))


def test_arrays_of_numpy_load_without_their_norms():
    source = norm_and_conv(nn.BatchNorm2d(8))
    checkpoint = {"model": {k: np.asarray(v) for k, v in values(source).items()}}
    with dropping_norms():
        check_norms(norm_and_conv(EvoNormS0(8)), checkpoint)
    assert set(checkpoint["model"]) == {"0.weight", "0.bias"}
