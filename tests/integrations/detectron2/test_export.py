"""Models with norm-activation layers leave Python as stock ones do: trace, export, ONNX."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head, build_model
from detectron2.structures import Instances
from torch import nn
from torch.export import Dim

from evonorm_plugins import get_norm_act

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
)

# Where no part of the package or of Detectron2 can be imported. torchvision has the operations of
# the graph that torch does not have, RoIAlign and non-maximum suppression.
LOAD_ELSEWHERE = """
import sys
sys.modules["evonorm_plugins"] = sys.modules["detectron2"] = None
import torch, torchvision
folder, threads, *files = sys.argv[1:]
torch.set_num_threads(int(threads))
for file in files:
    model = torch.jit.load(f"{folder}/{file}.ts")
    torch.save(model(torch.load(f"{folder}/image.pt")), f"{folder}/{file}.out")
"""


def detect(model, inputs):
    """Instances with boxes in the image and masks in their boxes."""
    return model.inference(inputs, do_postprocess=False)[0]


def trace(model, image):
    adapter = TracingAdapter(model, [{"image": image}], detect)
    return adapter, torch.jit.trace(adapter, (image,), check_trace=False)


def assert_same(actual: Instances, expected: Instances):
    assert len(expected) > 5
    assert actual.pred_classes.equal(expected.pred_classes)
    torch.testing.assert_close(
        actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3
    )
    for field in ("scores", "pred_masks"):
        torch.testing.assert_close(actual.get(field), expected.get(field), rtol=0, atol=1e-5)


@torch.no_grad()
def test_traced_detector_runs_elsewhere_on_images_of_other_sizes(
    small_cfg, train_batch, draw_norms, tmp_path
):
    image = train_batch(size=96)[0]["image"]
    other = torch.rand(3, 64, 128) * 255
    torch.save(other, tmp_path / "image.pt")
    schemas, expected = {}, {}
    for norm in ("EvoNormS0", "EvoNormB0"):
        model = draw_norms(build_model(small_cfg(norm))).eval()
        expected[norm] = detect(model, [{"image": other}])
        adapter, traced = trace(model, image)
        schemas[norm] = adapter.outputs_schema
        torch.jit.save(traced, tmp_path / f"{norm}.ts")
        for run in (traced, torch.jit.load(tmp_path / f"{norm}.ts")):
            assert_same(schemas[norm](run(other)), expected[norm])
    command = [sys.executable, "-c", LOAD_ELSEWHERE, str(tmp_path)]
    command += [str(torch.get_num_threads()), *expected]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    for norm in expected:
        outputs = torch.load(tmp_path / f"{norm}.out")
        assert_same(schemas[norm](outputs), expected[norm])


@torch.no_grad()
@pytest.mark.parametrize(
    "norm", ["EvoNormS0", "EvoNormB0", "EvoNormS2", "EvoNormB1", "FRN", "Random", "BN-ReLU"]
)
@pytest.mark.parametrize("head", ["MaskRCNNConvUpsampleHead", "PaperMaskHead"])
def test_head_traced_without_instances(norm, head, small_cfg, draw_norms):
    """The graph of an image where nothing is found holds for images where something is."""
    cfg = small_cfg(norm, "MODEL.ROI_MASK_HEAD.NAME", head)
    model = draw_norms(build_mask_head(cfg, ShapeSpec(32, 7, 7))).eval()
    nothing, three = torch.zeros(0, 32, 7, 7), torch.randn(3, 32, 7, 7)
    for example, x in ((nothing, three), (three, nothing)):
        adapter = TracingAdapter(model, (example,), lambda head, x: head.layers(x))
        traced = torch.jit.trace(adapter, (example,), check_trace=False)
        torch.testing.assert_close(traced(x)[0], model.layers(x), rtol=1e-5, atol=1e-5)


def onnx_session(file):
    """A session of ONNX Runtime for a graph that holds standard operations only."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    content = onnx.load(file)
    assert [opset.domain for opset in content.opset_import] == [""]
    assert {node.domain for node in content.graph.node} == {""}
    assert not content.functions
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def assert_onnx_runs_like(model, program, inputs, file):
    """``program`` becomes a file that gives what ``model`` gives."""
    pytest.importorskip("onnxscript")
    torch.onnx.export(program, dynamo=True, verbose=False).save(file)
    session = onnx_session(file)
    names = [given.name for given in session.get_inputs()]
    actual = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    expected = model(*inputs)
    expected = expected.values() if isinstance(expected, dict) else expected
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_whole_detector_as_one_onnx_file(norm, small_cfg, train_batch, draw_norms, tmp_path):
    """By the exporter that traces: for images of any size, proposals and RoIAlign included."""
    pytest.importorskip("onnx")
    model = draw_norms(build_model(small_cfg(norm))).eval()
    image = train_batch(size=96)[0]["image"]
    adapter = TracingAdapter(model, [{"image": image}], detect).eval()
    file = str(tmp_path / "detector.onnx")
    sizes = {"image": {1: "height", 2: "width"}}
    options = {"input_names": ["image"], "dynamic_axes": sizes, "opset_version": 17}
    torch.onnx.export(adapter, (image,), file, dynamo=False, **options)
    session = onnx_session(file)
    for x in (image, torch.rand(3, 64, 128) * 255):
        outputs = session.run(None, {"image": x.numpy()})
        actual = adapter.outputs_schema([torch.from_numpy(y) for y in outputs])
        assert_same(actual, detect(model, [{"image": x}]))


@torch.no_grad()
def test_heads_for_any_number_of_rois(small_cfg, draw_norms, tmp_path):
    """Box and mask head by the exporter that torch.export feeds."""
    heads = draw_norms(build_model(small_cfg("EvoNormS0"))).roi_heads.eval()

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.box, self.predictor = heads.box_head, heads.box_predictor
            self.mask = heads.mask_head

        def forward(self, boxes, masks):
            return *self.predictor(self.box(boxes)), self.mask.layers(masks)

    def rois(count):
        return torch.randn(count, 32, 7, 7), torch.randn(count, 32, 14, 14)

    model = Heads().eval()
    program = torch.export.export(model, rois(3), dynamic_shapes=({0: Dim.DYNAMIC},) * 2)
    for count in (0, 1, 5):
        for actual, expected in zip(
            program.module()(*rois(count)), model(*rois(count)), strict=True
        ):
            assert actual.shape == expected.shape
    inputs = rois(5)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
    assert_onnx_runs_like(model, program, inputs, str(tmp_path / "heads.onnx"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("norm", "backbone"),
    [
        ("EvoNormS0", "build_resnet_fpn_backbone"),
        ("EvoNormB0", "build_resnet_paper_fpn_backbone"),
    ],
)
def test_backbone_for_images_of_any_size(norm, backbone, small_cfg, draw_norms, tmp_path):
    """Exported once for all multiples of 32, then made an ONNX file.

    Above 64: where a level has one row or column, torch specialises the graph.
    """
    cfg = small_cfg(norm, "MODEL.BACKBONE.NAME", backbone)
    model = draw_norms(build_model(cfg).backbone).eval()
    sizes = {2: 32 * Dim("height", min=3, max=64), 3: 32 * Dim("width", min=3, max=64)}
    program = torch.export.export(model, (torch.randn(1, 3, 96, 128),), dynamic_shapes=(sizes,))
    for height, width in ((256, 320), (160, 96)):
        image = torch.randn(1, 3, height, width)
        actual, expected = program.module()(image), model(image)
        assert list(actual) == list(expected) == ["p2", "p3", "p4", "p5", "p6"]
        for level, features in expected.items():
            # Plain formulas against fused kernels, through the whole backbone.
            torch.testing.assert_close(actual[level], features, rtol=1e-4, atol=1e-4)
    assert_onnx_runs_like(model, program, (image,), str(tmp_path / "backbone.onnx"))


@torch.no_grad()
def test_other_layers_for_batches_of_any_size(draw_norms, tmp_path):
    """The number of images is open as well."""
    names = ["EvoNormS1", "EvoNormS2", "EvoNormB1", "EvoNormB2", "FRN", "BN-Swish", "GN-ReLU"]
    layers = [[nn.Conv2d(8, 8, 3, padding=1), get_norm_act(n, 8)] for n in names]
    model = draw_norms(nn.Sequential(*itertools.chain(*layers))).eval()
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(model, (torch.randn(2, 8, 6, 5),), dynamic_shapes=(sizes,))
    image = torch.randn(3, 8, 4, 9)
    torch.testing.assert_close(program.module()(image), model(image), rtol=1e-5, atol=1e-5)
    assert_onnx_runs_like(model, program, (image,), str(tmp_path / "layers.onnx"))
