"""Detectron2's ``FlopCountAnalysis`` with norm-activation layers, and ``tools/count_flops.py``."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import analysis
from torch import nn

import evonorm_plugins.integrations.detectron2  # noqa: F401
from evonorm_plugins import get_norm_act, list_norm_acts
from evonorm_plugins.layers import NormAct

ROOT = Path(__file__).parents[3]

CONV = 3 * 9  # multiply-adds for each element that the convolution of `tiny` writes
E, C, NC = 2 * 4 * 8 * 10, 4, 2 * 4  # elements, channels, channels of all images


def load(name, file):
    """A module by its file: as nobody has changed it, or one that no package has."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


count_flops = load("count_flops", ROOT / "tools/count_flops.py")


def analyse(model, *inputs, of=analysis):
    result = of.FlopCountAnalysis(model, inputs)
    result.tracer_warnings("none").uncalled_modules_warnings(False)
    return result.unsupported_ops_warnings(False)


def tiny(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), *layers)


IMAGE = torch.zeros(2, 3, 8, 10)

# Elements that each operation writes or, where it reduces, reads.
BY_HAND = {
    # variance, +eps, 1/root | v*x, sigmoid, x*, *1/root | gamma * + beta
    ("EvoNormS0", False): E + NC + NC + 4 * E + E,
    # instance variance, +eps, root; the same +eps, root of the moving one | v*x, +, max, / | affine
    ("EvoNormB0", False): E + NC + NC + C + C + 4 * E + E,
    # the same, and variance, times and by the number of elements, moving average
    ("EvoNormB0", True): E + NC + NC + C + C + 4 * E + E + (E + C + C + C),
    ("SyncEvoNormB0", False): E + NC + NC + C + C + 4 * E + E,
    # x*sigmoid(x) is one operation
    ("EvoNormS1", False): E + NC + NC + 2 * E + E,
    # fvcore's numbers for the norm, 2 in inference with the moving average, else 5
    ("BN-ReLU", False): 2 * E + E,
    ("GN-ReLU", False): 5 * E + E,
    ("GN-Swish", False): 5 * E + 3 * E,
    # tanh, max, tanh | affine
    ("Random + rej", False): 3 * E + E,
}


@pytest.mark.parametrize(("name", "training"), BY_HAND)
def test_count_by_hand(name, training):
    counted = analyse(tiny(get_norm_act(name, 4)).train(training), IMAGE)
    assert counted.by_module()["model.0"] == CONV * E
    assert counted.by_module()["model.1"] == BY_HAND[name, training]
    assert counted.total() == CONV * E + BY_HAND[name, training]
    assert not counted.unsupported_ops()


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "EvoNormB2", "Random"])
def test_without_activation_an_affine_transform_is_left(name):
    counted = analyse(tiny(get_norm_act(name, 4, apply_act=False)), IMAGE)
    assert counted.by_operator() == {"conv": CONV * E, "addcmul": E}


@pytest.mark.parametrize("training", [True, False])
def test_every_operation_of_every_layer_is_known(training):
    for name in list_norm_acts():
        counted = analyse(tiny(get_norm_act(name, 4)).train(training), IMAGE)
        assert counted.by_module()["model.1"] >= 3 * E, name
        assert not counted.unsupported_ops(), name


def test_same_operations_elsewhere_count_nothing():
    class Elsewhere(nn.Module):
        def forward(self, x):
            return (x * x.sigmoid() + x.square().sum()).maximum(x).tanh()

    norm = get_norm_act("EvoNormS0", 4)
    expected = analyse(tiny(norm), IMAGE).total()
    assert analyse(tiny(Elsewhere(), norm, Elsewhere()), IMAGE).total() == expected


def test_layer_alone_and_layer_used_twice():
    norm = get_norm_act("EvoNormS0", 3)
    elements, channels = 2 * 3 * 8 * 10, 2 * 3
    once = 6 * elements + 2 * channels
    assert analyse(norm, IMAGE).total() == once
    assert analyse(nn.Sequential(norm, norm), IMAGE).total() == 2 * once


def test_wrapped_model():
    """Detectron2 takes the model out of its wrapper."""
    model = tiny(get_norm_act("EvoNormS0", 4))
    assert analyse(nn.DataParallel(model), IMAGE).total() == analyse(model, IMAGE).total()


def pristine():
    """Detectron2's module as it is without this package."""
    return load("pristine_analysis", analysis.__file__)


def test_detector(small_cfg):
    model = build_model(small_cfg("EvoNormS0")).eval()
    expected = {}

    def count(name, layer):
        def hook(_, inputs, output):
            n, c, h, w = output.shape
            expected[name] = 6 * n * c * h * w + 2 * n * c if layer.apply_act else n * c * h * w

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, NormAct):
            layer.register_forward_hook(count(f"model.{name}", layer))
    inputs = [{"image": torch.rand(3, 64, 96) * 255}]
    counted = analyse(model, inputs)
    by_module = counted.by_module()
    assert len(expected) == 20 + 8 + 2 + 2  # backbone, FPN, heads
    assert {name: by_module[name] for name in expected} == expected
    assert not any(counted.unsupported_ops(name) for name in expected)
    stock = analyse(model, inputs, of=pristine())
    assert stock.total() > 1e8
    assert counted.total() == stock.total() + sum(expected.values())


@pytest.mark.parametrize("norm", ["BN", "GN", "FrozenBN", ""])
def test_models_without_these_layers_count_as_without_this_package(norm, small_cfg):
    model = build_model(small_cfg(norm)).eval()
    inputs = [{"image": torch.rand(3, 64, 96) * 255}]
    ours, stock = analyse(model, inputs), analyse(model, inputs, of=pristine())
    assert ours.total() == stock.total() > 1e8
    assert ours.by_module_and_operator() == stock.by_module_and_operator()
    assert ours.unsupported_ops() == stock.unsupported_ops()


# --- tools/count_flops.py ---


def conv_fc_by_hooks(model, run):
    """Multiply-adds of convolutions and fully connected layers, by what each reads and writes."""
    counts = []

    def hook(layer, inputs, output):
        if isinstance(layer, nn.Linear):
            counts.append(output.numel() * layer.in_features)
        else:
            outside = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
            counts.append(outside.numel() // outside.shape[1] * layer.weight.numel())

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        run(model)
    for handle in handles:
        handle.remove()
    return sum(counts)


def test_tool_counts_what_runs(small_cfg):
    cfg = small_cfg("EvoNormB0")
    result = count_flops.count_flops(cfg, size=64, box_rois=3, mask_rois=2)

    def run(model):
        features = model.backbone(torch.zeros(1, 3, 64, 64))
        model.proposal_generator.rpn_head(list(features.values()))
        model.roi_heads.box_predictor(model.roi_heads.box_head(torch.zeros(3, 32, 7, 7)))
        model.roi_heads.mask_head.layers(torch.zeros(2, 32, 14, 14))

    model = build_model(cfg).eval()
    assert result["conv_fc"] == conv_fc_by_hooks(model, run)
    assert result["total"] == sum(result["parts"].values()) > result["conv_fc"]
    assert list(result["parts"]) == ["bottom-up", "FPN", "RPN head", "box head", "mask head"]
    assert all(count > 0 for count in result["parts"].values())
    samples = count_flops.count_flops(cfg, size=64)
    assert (samples["box_rois"], samples["mask_rois"]) == (16, 4)
    boxes = small_cfg("EvoNormB0", "MODEL.MASK_ON", False)
    assert count_flops.count_flops(boxes, size=64)["parts"]["mask head"] == 0


@pytest.mark.parametrize(
    ("depth", "table", "ours", "conv_fc", "off"),
    [
        (50, (332.0, 332.3, 332.3, 331.9), (331.62, 332.20, 332.68, 332.20), 330_889_363_456, 0.4),
        (101, (409.8, 410.1, 410.3, 409.7), (409.41, 410.06, 410.80, 410.06), 408_467_210_240, 0.5),
    ],
)
def test_tool_on_the_papers_table(depth, table, ours, conv_fc, off, capsys):
    """Table 4 at 1024x1024 with 512 and 128 regions, in G multiply-adds.

    All sizes and numbers here are a 64th of those, and so are the counts, but for what is counted
    once for each image or channel.
    """
    norms = ("BN", "EvoNormB0", "GN", "EvoNormS0")
    folder = ROOT / "detectron_configs/paper"
    files = {norm: folder / f"mask_rcnn_R_{depth}_FPN_{norm}.yaml" for norm in norms}
    options = ["--size", "128", "--box-rois", "8", "--mask-rois", "2"]
    assert count_flops.main([*options, "--json", *map(str, files.values())]) == 0
    results = json.loads(capsys.readouterr().out)
    for file, own, theirs in zip(files.values(), ours, table, strict=True):
        result = results[str(file)]
        assert 64 * result["conv_fc"] == conv_fc
        assert 64 * result["total"] / 1e9 == pytest.approx(own, abs=0.01)
        assert own == pytest.approx(theirs, abs=off)
    assert count_flops.main([*options, str(files["BN"])]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["G", "multiply-adds", files["BN"].stem]
    total = results[str(files["BN"])]["total"] / 1e9
    assert rows[-2].split() == ["total", f"{total:.2f}"]
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100", "{}"], "--size 100 must be a multiple of 32"),
        (["--box-rois", "-1", "{}"], "there cannot be -1 RoIs"),
        (["nowhere.yaml"], "error: 'nowhere.yaml' is no file and no detectron2 config"),
    ],
)
def test_tool_with_bad_input(options, message, small_cfg, tmp_path, capsys):
    file = tmp_path / "small.yaml"
    file.write_text(small_cfg("BN").dump())
    assert count_flops.main([option.format(file) for option in options]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert not output.out


def test_tool_with_another_detector(small_cfg, tmp_path, capsys):
    file = tmp_path / "retinanet.yaml"
    file.write_text(small_cfg("BN", "MODEL.META_ARCHITECTURE", "RetinaNet").dump())
    assert count_flops.main([str(file)]) == 2
    assert "only Mask R-CNN and Faster R-CNN with FPN" in capsys.readouterr().err
