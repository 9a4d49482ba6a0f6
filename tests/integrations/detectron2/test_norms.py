"""Names, the rule of placement, and models that must not change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import ASPP, ShapeSpec, get_norm
from detectron2.modeling import FPN, ResNet, build_model
from detectron2.modeling.backbone import regnet, resnet, vit
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.utils.events import EventStorage
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import deform_conv2d

import evonorm_plugins
from evonorm_plugins.integrations import detectron2 as plugin
from evonorm_plugins.layers import FRN, BNReLU, EvoNormB0, EvoNormS0, NormAct

ACTIVATIONS = {
    "relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "elu",
}  # fmt: skip


class ActivationsAfterNormActs(TorchFunctionMode):
    """Counts activation functions applied to what a NormAct with activation has just returned."""

    def __init__(self, model):
        super().__init__()
        self.outputs, self.norm_acts, self.found = [], 0, []
        self.layers = [m for m in model.modules() if isinstance(m, NormAct)]
        self.inside = 0

    def __enter__(self):
        self.handles = [
            handle
            for m in self.layers
            for handle in (
                m.register_forward_pre_hook(self.enter),
                m.register_forward_hook(self.leave),
            )
        ]
        return super().__enter__()

    def __exit__(self, *args):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*args)

    def enter(self, module, inputs):
        self.inside += 1

    def leave(self, module, inputs, output):
        self.inside -= 1
        if module.apply_act:
            self.outputs.append(output)
            self.norm_acts += 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if not self.inside and name in ACTIVATIONS and any(args[0] is y for y in self.outputs):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def activations_after_norm_acts(model, run):
    """(how many NormActs with activation ran, the activations applied to their outputs)."""
    with ActivationsAfterNormActs(model) as mode, torch.no_grad(), EventStorage():
        run(model)
    return mode.norm_acts, mode.found


def image(size=64):
    return torch.randn(1, 3, size, size)


def norm_acts(module):
    return [m for m in module.modules() if isinstance(m, NormAct)]


def stem(norm):
    return resnet.BasicStem(norm=norm)


def test_the_check_finds_an_activation_left_behind():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), EvoNormS0(8), nn.ReLU())
    assert activations_after_norm_acts(model, lambda m: m(image())) == (1, ["relu"])


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "GN-Swish", "FRN"])
@pytest.mark.parametrize("depth", [18, 50])
def test_mask_rcnn_has_no_activation_after_a_norm_act(small_cfg, train_batch, depth, norm):
    options = ["MODEL.RESNETS.DEPTH", depth]
    if depth == 50:
        options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    model = build_model(small_cfg(norm, *options))
    count, found = activations_after_norm_acts(model, lambda m: m(train_batch()))
    # stem, one per basic block or two per bottleneck, two convolutions in either head
    assert count == 1 + (8 if depth == 18 else 2 * 16) + 4
    assert found == []


def modulated_on_cpu(x, offset, mask, weight, bias, stride, padding, dilation, *_):
    return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_block(modulated, monkeypatch):
    # Detectron2's own modulated convolution runs on CUDA alone.
    monkeypatch.setattr("detectron2.layers.deform_conv.modulated_deform_conv", modulated_on_cpu)
    torch.manual_seed(0)
    options = dict(bottleneck_channels=16, deform_modulated=modulated, stride=2)
    block = resnet.DeformBottleneckBlock(32, 64, norm="EvoNormS0", **options)
    assert isinstance(block, plugin.NormActDeformBottleneckBlock)
    count, found = activations_after_norm_acts(block, lambda m: m(torch.randn(2, 32, 8, 8)))
    assert (count, found) == (2, [])
    # With BN-ReLU in EvoNorm's place it is what Detectron2 computes with BN.
    stock = resnet.DeformBottleneckBlock(32, 64, norm="BN", **options)
    ours = resnet.DeformBottleneckBlock(32, 64, norm="BN-ReLU", **options)
    copy_batch_norm(stock, ours)
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(ours(x), stock(x))


def copy_batch_norm(stock, ours):
    """Load a model with BN into the same model with BN-ReLU, whose BN is called ``norm``."""
    own = ours.state_dict()
    source = {}
    for key, value in stock.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        source[key if key in own else f"{prefix}.norm.{leaf}"] = value
    ours.load_state_dict(source)


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (resnet.BasicBlock, {"stride": 2}),
        (resnet.BottleneckBlock, {"bottleneck_channels": 16, "stride": 2}),
    ],
)
def test_blocks_with_bn_relu_compute_what_detectron2_does_with_bn(block, options):
    torch.manual_seed(0)
    stock, ours = block(32, 64, norm="BN", **options), block(32, 64, norm="BN-ReLU", **options)
    copy_batch_norm(stock, ours)
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(ours(x), stock(x))


def test_whole_model_with_bn_relu_computes_what_detectron2_does_with_bn(small_cfg, train_batch):
    torch.manual_seed(0)
    stock, ours = (build_model(small_cfg(norm)) for norm in ("BN", "BN-ReLU"))
    copy_batch_norm(stock, ours)
    losses = []
    for model in (stock, ours):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model(train_batch(images=2)))
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        torch.testing.assert_close(losses[1][name], losses[0][name], msg=name)


@pytest.mark.parametrize("se_ratio", [0, 0.25])
@pytest.mark.parametrize("stem_class", [regnet.ResStem, regnet.SimpleStem])
@pytest.mark.parametrize(
    ("block", "per_block"), [(regnet.ResBottleneckBlock, 2), (regnet.ResBasicBlock, 1)]
)
def test_regnet(stem_class, block, per_block, se_ratio):
    options = dict(depth=6, w_a=8, w_0=16, w_m=2, group_width=8, se_ratio=se_ratio)
    model = regnet.RegNet(
        stem_class=stem_class,
        stem_width=16,
        block_class=block,
        activation_class=nn.SiLU,
        norm="EvoNormS0",
        **options,
    )
    blocks = sum(isinstance(m, block) for m in model.modules())
    count, found = activations_after_norm_acts(model, lambda m: m(image()))
    assert (count, found) == (1 + per_block * blocks, [])
    # Behind the last convolution of a block and on its shortcut there is no activation.
    for m in model.modules():
        if isinstance(m, block):
            assert m.bn is None or not m.bn.apply_act
            last = m.f.c_bn if block is regnet.ResBottleneckBlock else m.f.b_bn
            assert not last.apply_act


def test_vanilla_block():
    block = regnet.VanillaBlock(16, 16, 1, "EvoNormS0", nn.ReLU, {})
    count, found = activations_after_norm_acts(block, lambda m: m(torch.randn(1, 16, 8, 8)))
    assert (count, found) == (2, [])


def retinanet_head(norm):
    shapes = [ShapeSpec(channels=32, stride=s) for s in (8, 16)]
    return RetinaNetHead(
        input_shape=shapes, num_classes=3, num_anchors=2, conv_dims=[32, 32], norm=norm
    )


def test_retinanet_tower():
    features = [torch.randn(1, 32, s, s) for s in (8, 4)]
    head = retinanet_head("EvoNormS0")
    assert activations_after_norm_acts(head, lambda m: m(features)) == (8, [])


def test_retinanet_warns_of_moving_variances_shared_by_levels(caplog):
    retinanet_head("EvoNormS0")
    assert "shared" not in caplog.text
    retinanet_head("EvoNormB0")
    assert "moving statistics of its EvoNormB0" in caplog.text


def test_semantic_head():
    shapes = {f"p{k}": ShapeSpec(channels=32, stride=2**k) for k in (2, 3, 4)}
    head = SemSegFPNHead(shapes, num_classes=3, conv_dims=32, common_stride=4, norm="EvoNormS0")
    features = {k: torch.randn(1, 32, 64 // s.stride, 64 // s.stride) for k, s in shapes.items()}
    count, found = activations_after_norm_acts(head.eval(), lambda m: m(features))
    assert (count, found) == (1 + 1 + 2, [])


def test_aspp():
    head = ASPP(32, 16, [2, 3, 4], norm="EvoNormS0", activation=nn.functional.relu)
    count, found = activations_after_norm_acts(head, lambda m: m(torch.randn(1, 32, 16, 16)))
    assert (count, found) == (5, [])


def test_fpn_has_the_affine_transform_on_laterals_and_outputs():
    model = FPN(
        ResNet(stem("EvoNormS0"), [[resnet.BasicBlock(64, 64, norm="EvoNormS0")]]),
        ["res2"],
        32,
        norm="EvoNormS0",
    )
    for conv in (model.fpn_lateral2, model.fpn_output2):
        assert type(conv.norm) is EvoNormS0
        assert not conv.norm.apply_act
    assert model.bottom_up.stem.conv1.norm.apply_act
    assert model.bottom_up.res2[0].conv1.norm.apply_act
    assert not model.bottom_up.res2[0].conv2.norm.apply_act


@pytest.mark.parametrize("norm", evonorm_plugins.list_norm_acts())
def test_every_registered_name_in_every_norm_key(small_cfg, train_batch, norm):
    model = build_model(small_cfg(norm))
    kinds = {type(m) for m in norm_acts(model)}
    assert kinds == {type(evonorm_plugins.get_norm_act(norm, 8))}
    with EventStorage():
        losses = model(train_batch(images=2))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_options_in_a_name(small_cfg):
    model = build_model(small_cfg("evonorm-s0(groups=8, eps=1e-4)"))
    assert {(m.groups, m.eps) for m in norm_acts(model)} == {(8, 1e-4)}


def test_lazy_config_names_types_and_callables():
    for norm in ("EvoNormB0", EvoNormB0, lambda c: evonorm_plugins.get_norm_act("EvoNormB0", c)):
        block = (
            instantiate(
                LazyCall(resnet.BottleneckBlock)(
                    in_channels=64, out_channels=64, bottleneck_channels=16, norm="EvoNormB0"
                )
            )
            if norm == "EvoNormB0"
            else resnet.BottleneckBlock(64, 64, bottleneck_channels=16, norm=norm)
        )
        acts = [block.conv1.norm, block.conv2.norm, block.conv3.norm]
        assert [type(m) for m in acts] == [EvoNormB0] * 3
        assert [m.apply_act for m in acts] == [True, True, False]


def test_lazy_config_of_the_model_zoo():
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone.bottom_up.stem.norm = "EvoNormS0"
    model.backbone.bottom_up.stages.norm = "EvoNormS0"
    model.backbone.norm = "EvoNormS0"
    built = instantiate(model)
    assert len(norm_acts(built)) == 53 + 8


def test_unknown_name_lists_the_known_ones(small_cfg):
    with pytest.raises(ValueError, match=r"unknown NORM 'EvoNormS7'; .*FrozenBN.*EvoNormS0"):
        build_model(small_cfg("EvoNormS7"))


def test_stock_norms_are_still_what_they_were():
    assert type(get_norm("BN", 8)) is nn.BatchNorm2d
    assert type(get_norm("GN", 32)) is nn.GroupNorm
    assert get_norm("", 8) is None
    assert get_norm(None, 8) is None


BUILD = """
import json, sys, torch
if sys.argv[1] == "with":
    import evonorm_plugins.integrations.detectron2
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
out = {}
for path, options in (
    ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", ["MODEL.RESNETS.NORM", "BN"]),
    ("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml", []),
    ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", []),
):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(path))
    cfg.merge_from_list(["MODEL.DEVICE", "meta", *options])
    with torch.device("meta"):
        model = build_model(cfg)
    out[path] = [
        [n, type(m).__module__ + "." + type(m).__qualname__, m.extra_repr()]
        for n, m in model.named_modules()
    ] + [[k, list(v.shape), ""] for k, v in model.state_dict().items()]
json.dump(out, sys.stdout)
"""


def test_models_without_norm_acts_are_built_as_without_the_import():
    root = Path(evonorm_plugins.__file__).parents[1]
    built = [
        json.loads(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", BUILD, which],
                cwd=root, check=True, capture_output=True, text=True,
            ).stdout
        )
        for which in ("with", "without")
    ]  # fmt: skip
    assert len(built[0]) == 3
    assert built[0] == built[1]


def scratch(norm, depth):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.RESNETS.DEPTH", depth])
    for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        cfg.MODEL[part].NORM = norm
    return cfg


@pytest.mark.parametrize(("depth", "more"), [(50, 9_664), (101, 18_368)])
def test_parameters_added_to_the_model_zoo_config(depth, more):
    counts = {}
    for norm in ("BN", "EvoNormB0", "EvoNormS0"):
        with torch.device("meta"):
            model = build_model(scratch(norm, depth))
        counts[norm] = sum(p.numel() for p in model.parameters())
    assert counts["EvoNormB0"] - counts["BN"] == more
    assert counts["EvoNormS0"] - counts["BN"] == more


def test_freeze_at_freezes_the_moving_variance(small_cfg, train_batch):
    model = build_model(small_cfg("EvoNormB0", "MODEL.BACKBONE.FREEZE_AT", 2))
    frozen = [
        m for part in ("stem", "res2") for m in norm_acts(getattr(model.backbone.bottom_up, part))
    ]
    trained = norm_acts(model.backbone.bottom_up.res3)
    before = {m: m.running_var.clone() for m in frozen + trained}
    with EventStorage():
        model(train_batch())
    assert all(m.frozen and not m.uses_batch() for m in frozen)
    assert all(not p.requires_grad for m in frozen for p in m.parameters())
    assert all(torch.equal(m.running_var, before[m]) for m in frozen)
    assert any(not torch.equal(m.running_var, before[m]) for m in trained)
    x = torch.randn(1, 3, 64, 64)
    train = model.backbone.bottom_up.train().stem(x)
    torch.testing.assert_close(train, model.backbone.bottom_up.eval().stem(x))


def test_freeze_at_with_bn_relu_uses_detectron2s_frozen_norm(small_cfg):
    from detectron2.layers import FrozenBatchNorm2d

    model = build_model(small_cfg("BN-ReLU", "MODEL.BACKBONE.FREEZE_AT", 1))
    stem_norm = model.backbone.bottom_up.stem.conv1.norm
    assert type(stem_norm) is BNReLU
    assert type(stem_norm.norm) is FrozenBatchNorm2d


def test_layers_placed_by_hand_are_left_alone():
    class Backbone(plugin.NormActBottleneckBlock):
        pass

    block = Backbone(64, 64, bottleneck_channels=16, norm="FRN")
    assert type(block) is Backbone
    assert [type(c.norm) for c in (block.conv1, block.conv3)] == [FRN, FRN]
    assert block.conv1.norm.apply_act
    assert not block.conv3.norm.apply_act
    # An enclosing module's constructor does not place its parts' layers again.
    fpn = FPN(ResNet(stem("BN"), [[block.__class__(64, 64, bottleneck_channels=16, norm="FRN")]]),
              ["res2"], 32, norm="EvoNormS0")  # fmt: skip
    assert fpn.bottom_up.res2[0].conv1.norm.apply_act


def test_last_norm_of_vits_block_starts_at_zero():
    """The block is the identity at the start, as ViTDet has it."""
    block = vit.ResBottleneckBlock(32, 32, 16, norm="EvoNormS0")
    assert not block.norm3.apply_act
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_subclass_of_a_block_with_its_own_forward_is_refused():
    class Block(resnet.BottleneckBlock):
        pass

    Block(64, 64, bottleneck_channels=16, norm="BN")
    with pytest.raises(TypeError, match="extend NormActBottleneckBlock instead"):
        Block(64, 64, bottleneck_channels=16, norm="EvoNormS0")
