"""Classes of Detectron2's projects with norm-activation layers."""

import importlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicStem, ResNetBlockBase
from torch import nn

from evonorm_plugins.integrations.detectron2 import norms_of, projects, verify

ROOT = Path(__file__).parents[3]
NORMS = ["EvoNormS0", "EvoNormB0"]


@pytest.fixture
def deeplab():
    pytest.importorskip(
        "detectron2.projects.deeplab", reason="this Detectron2 comes without its projects"
    )
    return importlib.import_module("detectron2.projects.deeplab")


@pytest.fixture
def panoptic_deeplab(deeplab, monkeypatch):
    # Read by the project's data set mapper, which no model needs.
    monkeypatch.setitem(sys.modules, "panopticapi", types.ModuleType("panopticapi"))
    utils = types.ModuleType("panopticapi.utils")
    utils.rgb2id = None
    monkeypatch.setitem(sys.modules, "panopticapi.utils", utils)
    return pytest.importorskip("detectron2.projects.panoptic_deeplab")


def small(cfg, norm):
    """DeepLab's keys as its configs have them, a ResNet-50 of few channels, one size of crop."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_deeplab_backbone", 0
    cfg.MODEL.RESNETS.update(
        STEM_TYPE="deeplab", STEM_OUT_CHANNELS=16, RES2_OUT_CHANNELS=32, WIDTH_PER_GROUP=8,
        OUT_FEATURES=["res2", "res5"], RES5_DILATION=2, RES5_MULTI_GRID=[1, 2, 4], NORM=norm,
        STRIDE_IN_1X1=False,
    )  # fmt: skip
    cfg.MODEL.SEM_SEG_HEAD.update(
        IN_FEATURES=["res2", "res5"], PROJECT_FEATURES=["res2"], PROJECT_CHANNELS=[8], NORM=norm,
        NUM_CLASSES=5, CONVS_DIM=16, ASPP_CHANNELS=16, COMMON_STRIDE=4, IGNORE_VALUE=255,
    )  # fmt: skip
    cfg.INPUT.CROP.update(ENABLED=True, TYPE="absolute", SIZE=[64, 64])
    return cfg


def semantic_batch():
    return [{"image": torch.rand(3, 64, 64) * 255, "sem_seg": torch.randint(0, 5, (64, 64))}] * 2


def train_step(model, batch):
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("norm", NORMS)
def test_deeplab_v3_plus(deeplab, norm):
    cfg = get_cfg()
    deeplab.add_deeplab_config(cfg)
    cfg = small(cfg, norm)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "DeepLabV3PlusHead"
    model = build_model(cfg)
    report = verify(model, semantic_batch())
    assert report.ok
    # Stem, two for each of 16 blocks, five of ASPP, its projection, that of res2, two that fuse.
    assert len(report.with_activation) == 3 + 32 + 5 + 1 + 2
    assert len(report.without_activation) == 16 + 4
    train_step(model, semantic_batch())


@pytest.mark.parametrize("norm", NORMS)
def test_deeplab_v3(deeplab, norm):
    cfg = get_cfg()
    deeplab.add_deeplab_config(cfg)
    cfg = small(cfg, norm)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = "DeepLabV3Head", 16
    model = build_model(cfg)
    report = verify(model, semantic_batch())
    assert report.ok
    assert len(report.with_activation) == 3 + 32 + 5
    train_step(model, semantic_batch())


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_panoptic_deeplab(panoptic_deeplab, norm, separable):
    cfg = get_cfg()
    panoptic_deeplab.add_panoptic_deeplab_config(cfg)
    cfg = small(cfg, norm)
    cfg.MODEL.META_ARCHITECTURE = "PanopticDeepLab"
    cfg.DATASETS.TRAIN = ("a_set",)  # whose metadata inference would read
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PanopticDeepLabSemSegHead"
    for head in (cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.INS_EMBED_HEAD):
        head.update(
            HEAD_CHANNELS=8, USE_DEPTHWISE_SEPARABLE_CONV=separable, NORM=norm, CONVS_DIM=16,
            ASPP_CHANNELS=16, IN_FEATURES=["res2", "res5"], PROJECT_FEATURES=["res2"],
            PROJECT_CHANNELS=[8],
        )  # fmt: skip
    cfg.MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV = separable
    model = build_model(cfg)
    batch = semantic_batch()
    for example in batch:
        example.update(
            center=torch.rand(64, 64), center_weights=torch.ones(64, 64),
            offset=torch.rand(2, 64, 64), offset_weights=torch.ones(64, 64),
            sem_seg_weights=torch.ones(64, 64),
        )  # fmt: skip
    report = verify(model, batch)
    assert report.ok
    assert len(report.without_activation) == 16 + 4
    assert report.other_norms == {}
    train_step(model, batch)


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_deeplabs_stem_is_its_own_with_other_norms(deeplab, norm):
    stem = deeplab.resnet.DeepLabStem(3, 64, norm=norm)
    assert type(stem) is deeplab.resnet.DeepLabStem


def test_deeplabs_stem_with_bn_relu_computes_what_the_stock_one_does_with_bn(deeplab):
    stem = deeplab.resnet.DeepLabStem
    stock, ours = stem(norm="BN"), stem(norm="BN-ReLU")
    ours.load_state_dict(
        {k.replace("norm.", "norm.norm."): v for k, v in stock.state_dict().items()}
    )
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), stock(x))


class TridentConv(nn.Module):
    """One convolution for all branches, each with a dilation of its own."""

    def __init__(self, channels, dilations, norm):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) * 0.1)
        self.dilations, self.norm = dilations, norm

    def forward(self, inputs):
        pairs = zip(inputs, self.dilations, strict=False)
        return [self.norm(F.conv2d(x, self.weight, None, 1, d, d)) for x, d in pairs]


class TridentBottleneckBlock(ResNetBlockBase):
    """Of the shape of TridentNet's, whose package is not in Detectron2's wheel."""

    def __init__(self, in_channels, out_channels, *, norm, concat_output=False):
        super().__init__(in_channels, out_channels, 1)
        self.num_branch, self.test_branch_idx = 3, 1
        self.concat_output = concat_output
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = Conv2d(in_channels, out_channels, 1, norm=get_norm(norm, out_channels))
        self.conv1 = Conv2d(in_channels, 8, 1, norm=get_norm(norm, 8))
        self.conv2 = TridentConv(8, (1, 2, 3), get_norm(norm, 8))
        self.conv3 = Conv2d(8, out_channels, 1, norm=get_norm(norm, out_channels))

    def forward(self, x):
        branches = self.num_branch if self.training else 1
        x = x if isinstance(x, list) else [x] * branches
        out = self.conv2([F.relu_(self.conv1(b)) for b in x])
        out = [self.conv3(F.relu_(b)) for b in out]
        short = x if self.shortcut is None else [self.shortcut(b) for b in x]
        out = [F.relu_(a + b) for a, b in zip(out, short, strict=True)]
        return torch.cat(out) if self.concat_output else out


@pytest.fixture(scope="module")
def trident(tmp_path_factory):
    """A package of TridentNet's name, imported as a user would: from a folder of sys.path."""
    name = "tridentnet.trident_backbone"
    if importlib.util.find_spec("tridentnet") is not None:
        pytest.skip("the real package is there")
    folder = tmp_path_factory.mktemp("projects")
    (folder / "tridentnet").mkdir()
    (folder / "tridentnet/__init__.py").write_text("")
    (folder / "tridentnet/trident_backbone.py").write_text(
        f"from {__name__} import TridentBottleneckBlock\n"
    )
    sys.path.insert(0, str(folder))
    yield importlib.import_module(name).TridentBottleneckBlock
    sys.path.remove(str(folder))
    for module in (name, "tridentnet", f"{projects.__name__}.tridentnet"):
        del sys.modules[module]


@pytest.mark.parametrize("norm", NORMS)
def test_tridentnets_blocks(trident, norm):
    stage = nn.Sequential(
        trident(16, 32, norm=norm), trident(32, 32, norm=norm, concat_output=True)
    )
    assert {type(b).__name__ for b in stage} == {"NormActTridentBottleneckBlock"}
    x = torch.randn(2, 16, 9, 9)
    for training, images in ((True, 6), (False, 2)):
        report = verify(stage.train(training), x)
        assert report.ok
        assert (len(report.with_activation), len(report.without_activation)) == (4, 3)
        assert stage(x).shape == (images, 32, 9, 9)


def test_tridentnets_block_with_bn_relu_computes_what_the_stock_one_does_with_bn(trident):
    stock, ours = (trident(16, 32, norm=n, concat_output=True) for n in ("BN", "BN-ReLU"))
    assert type(stock) is trident
    ours.load_state_dict(
        {k.replace("norm.", "norm.norm."): v for k, v in stock.state_dict().items()}
    )
    x = torch.randn(2, 16, 9, 9)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), stock.train(training)(x))


TAKEN_BACK = """
from evonorm_plugins.integrations import detectron2 as plugin

def build():
    try:
        return type(DeepLabStem(norm="EvoNormS0")).__name__
    except Exception as error:
        return type(error).__name__

plugin.unregister()
from detectron2.projects.deeplab.resnet import DeepLabStem
print(build())
plugin.register()
print(build())
plugin.unregister()
print(build())
"""


def test_projects_are_put_back(deeplab):
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TAKEN_BACK],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert process.stdout.split() == ["KeyError", "NormActDeepLabStem", "KeyError"]


def test_converting_to_frozen_norms_freezes_moving_variances():
    """As TridentNet does with its stem."""
    stem = FrozenBatchNorm2d.convert_frozen_batchnorm(BasicStem(norm="EvoNormB0"))
    assert stem.conv1.norm.frozen


def test_denseposes_decoder_is_adapted_when_it_is_imported(tmp_path, monkeypatch):
    """A class of the decoder's shape under its name; the package is not in Detectron2's wheel."""
    folder = tmp_path / "densepose/modeling/roi_heads"
    folder.mkdir(parents=True)
    for package in (folder, *folder.parents[:2]):
        (package / "__init__.py").write_text("")
    (folder / "roi_head.py").write_text(
        "import torch.nn.functional as F\n"
        "from detectron2.layers import Conv2d, get_norm\n"
        "from torch import nn\n"
        "class Decoder(nn.Module):\n"
        "    def __init__(self, norm):\n"
        "        super().__init__()\n"
        "        self.p2 = nn.Sequential(\n"
        "            Conv2d(8, 8, 3, norm=get_norm(norm, 8), activation=F.relu), nn.Upsample(2)\n"
        "        )\n"
        "    def forward(self, features):\n"
        "        return self.p2(features[0])\n"
    )
    if importlib.util.find_spec("densepose") is not None:
        pytest.skip("the real package is there")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        decoder = importlib.import_module("densepose.modeling.roi_heads.roi_head").Decoder
        built = decoder("EvoNormS0")
        assert list(norms_of(built).values()) == ["EvoNormS0(groups=8)"]
        assert verify(built, [torch.randn(1, 8, 4, 4)]).ok
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "densepose"]:
            del sys.modules[name]
