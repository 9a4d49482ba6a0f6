#!/usr/bin/env python
"""Build every config of Detectron2 and its projects with a norm-activation layer, as a table.

Every NORM key of a config, and every norm= of a LazyConfig, names the layer. The model is built
with random weights, checked by evonorm_plugins.integrations.detectron2.verify, and trained for one
step on two drawn images, on the CPU. Configs that differ in nothing but data and schedule build the
same model; it is run once. What a config reads from the project's data alone (proposals, surfaces
of people) is drawn or left out.

examples:
  tools/experiments/detectron2_table.py detectron2/          # a checkout, with configs and projects
  tools/experiments/detectron2_table.py detectron2/ --norm EvoNormB0 --only DeepLab TridentNet

exit status: 0 done, 1 a model failed, 2 bad input
"""

import argparse
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.layers import deform_conv
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig
from torchvision.ops import deform_conv2d

from evonorm_plugins import get_norm_act
from evonorm_plugins.errors import InputError, first, reason
from evonorm_plugins.integrations.detectron2 import verify

COLUMNS = ("configs", "models", "with activation", "affine", "other norms", "one step, checked")
# Project -> (folder of its package, package, what adds its keys to a config).
PROJECTS = {
    "DeepLab": ("", "detectron2.projects.deeplab", "add_deeplab_config"),
    "Panoptic-DeepLab": ("", "detectron2.projects.panoptic_deeplab", "add_panoptic_deeplab_config"),
    "PointRend": ("", "detectron2.projects.point_rend", "add_pointrend_config"),
    "TridentNet": ("TridentNet", "tridentnet", "add_tridentnet_config"),
    "DensePose": ("DensePose", "densepose", "add_densepose_config"),
    "TensorMask": ("TensorMask", "tensormask", "add_tensormask_config"),
}
PIXELS = 128
# Its value is no norm by name: anything but GN leaves the head without one.
FIXED = ("MODEL.ROI_DENSEPOSE_HEAD.DEEPLAB.NORM",)
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
}


def find_configs(checkout, only):
    """``{family: files}``; a family is a folder and what its models are called."""
    families = {}
    files = [*checkout.glob("configs/*/*"), *checkout.glob("projects/*/configs/**/*")]
    for file in sorted(files):
        part = file.relative_to(checkout)
        shared = {"common", "legacy"} & set(part.parts) or part.name.startswith("Base-")
        if file.suffix not in (".yaml", ".py") or shared or not _is_model(file):
            continue
        folder = part.parts[1]
        named = re.match(r".*?(?:vitdet|mvitv2|swin|regnet)", file.stem)
        residual = re.split(r"_(?:R|X|WC|DL|HRFPN|soft)[_x-]?", file.stem)[0]
        model = named[0] if named else residual
        name = f"{folder}: {model}" + (", HRNet" if "HRNet" in file.stem else "")
        name += ", LazyConfig" if file.suffix == ".py" else ""
        if not only or any(o in str(part) for o in only):
            families.setdefault(name, []).append(file)
    return families


def _is_model(file):
    return file.suffix == ".yaml" or "model" in file.read_text()


def build_yaml(file, norm):
    """``(key, build)``: what makes the model what it is, and a function that builds it."""
    cfg = get_cfg()
    project = file.parts[file.parts.index("projects") + 1] if "projects" in file.parts else None
    if project == "PointSup":
        project = "PointRend"
    if project in PROJECTS:
        folder, package, add = PROJECTS[project]
        root = Path(*file.parts[: file.parts.index("projects") + 1])
        if folder and str(root / folder) not in sys.path:
            sys.path.append(str(root / folder))
        getattr(importlib.import_module(package), add)(cfg)
    if "PointSup" in file.parts:
        sys.path.append(str(root / "PointSup"))
        importlib.import_module("point_sup").add_point_sup_config(cfg)
    cfg.merge_from_file(str(file), allow_unsafe=True)
    for key, value in SMALL.items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.WEIGHTS = ""
    if cfg.INPUT.CROP.ENABLED and "DeepLab" in str(file):
        cfg.INPUT.CROP.SIZE = [PIXELS, PIXELS]
    _set_norms(cfg.MODEL, "MODEL", norm)
    mask = cfg.INPUT.MASK_FORMAT
    return str(cfg.MODEL), lambda: (build_model(cfg), mask)


def _set_norms(node, path, norm):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _set_norms(value, f"{path}.{key}", norm)
        elif key.endswith("NORM") and f"{path}.{key}" not in FIXED:
            node[key] = norm


def build_lazy(file, norm):
    """The same for a LazyConfig."""
    model = LazyConfig.load(str(file)).model
    if "FPN" in str(model.backbone._target_):
        model.backbone.norm = norm  # left out where FPN is to have none
    _set_lazy_norms(model, norm)
    if "square_pad" in model.backbone:
        model.backbone.square_pad = PIXELS
    return str(model), lambda: (instantiate(model).cpu(), "bitmask")


def _set_lazy_norms(node, norm):
    if isinstance(node, DictConfig):
        for key, value in node.items():
            if key in ("norm", "conv_norm"):
                node[key] = norm
            else:
                _set_lazy_norms(value, norm)
    elif isinstance(node, ListConfig):
        for value in node:
            _set_lazy_norms(value, norm)


def draw_batch(mask_format):
    """Two images with all that any of the models is trained with."""
    batch = []
    for _ in range(2):
        size = (PIXELS, PIXELS)
        instances = Instances(size)
        boxes = torch.tensor([[8.0, 12, 80, 88], [40, 24, 120, 100]])
        instances.gt_boxes, instances.gt_classes = Boxes(boxes), torch.tensor([0, 0])
        corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
        polygons = PolygonMasks([[corner] for corner in corners])
        masks = BitMasks.from_polygon_masks([[np.array(c)] for c in corners], *size)
        instances.gt_masks = polygons if mask_format == "polygon" else masks
        centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        points = torch.cat([centers.expand(-1, 17, -1), torch.full((2, 17, 1), 2.0)], 2)
        instances.gt_keypoints = Keypoints(points)
        instances.gt_point_coords = centers.expand(-1, 10, -1).contiguous()
        instances.gt_point_labels = torch.ones(2, 10)
        if "densepose" in sys.modules:
            instances.gt_densepose = _draw_surfaces(instances.gt_boxes.tensor, size)
        proposals = Instances(size)
        proposals.proposal_boxes = Boxes(boxes)
        proposals.objectness_logits = torch.ones(2)
        batch.append(
            {
                "image": torch.rand(3, *size) * 255,
                "instances": instances,
                "proposals": proposals,
                "sem_seg": torch.randint(0, 2, size),
                "sem_seg_weights": torch.ones(size),
                "center": torch.rand(size),
                "center_weights": torch.ones(size),
                "offset": torch.rand(2, *size),
                "offset_weights": torch.ones(size),
                "height": PIXELS,
                "width": PIXELS,
            }
        )
    return batch


def _draw_surfaces(boxes, size):
    structures = importlib.import_module("densepose.structures")
    place = {f"dp_{axis}": torch.linspace(20, 230, 10) for axis in "xy"}
    surface = {"dp_I": torch.ones(10), "dp_U": torch.rand(10), "dp_V": torch.rand(10)}
    masks = {"dp_masks": torch.ones(256, 256)}
    drawn = [structures.DensePoseDataRelative({**place, **surface, **masks}) for _ in boxes]
    return structures.DensePoseList(drawn, boxes, size)


def check(build):
    """Build, verify, train one step; the report, or raise what went wrong."""
    torch.manual_seed(0)
    model, mask_format = build()
    model.train()
    batch = draw_batch(mask_format)
    report = verify(model, batch)
    if report.twice or report.unnormalized:
        raise InputError(" ".join(str(report).split()))
    with EventStorage():
        loss = sum(model(batch).values())
    loss.backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()
    if not torch.isfinite(loss):
        raise InputError(f"the loss is {loss.item()}")
    return report


def on_cpu(x, offset, mask, weight, bias, stride, padding, dilation, *_):
    """Detectron2's modulated deformable convolution, which runs on CUDA alone, by torchvision."""
    return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


def row(family, files, norm, one):
    """A row of the table, and one line for each model that failed."""
    models, reports, failed = {}, [], []
    for file in sorted(files, key=_depth)[: 1 if one else None]:
        make = build_lazy if file.suffix == ".py" else build_yaml
        try:
            key, build = make(file, norm)
            if key in models:
                continue
            models[key] = file
            report = check(build)
        except Exception as error:  # of whatever a config or a project needs
            failed.append(f"{file.name}: {type(error).__name__}: {reason(error)[:300]}")
            continue
        reports.append(report)
        if report.not_run:
            failed.append(f"{file.name}: not run: {first(report.not_run)}")
    cells = [str(len(files)), str(len(models))]
    for name in ("with_activation", "without_activation", "other_norms"):
        counts = sorted({len(getattr(report, name)) for report in reports})
        cells.append("-".join(map(str, dict.fromkeys(counts[:1] + counts[-1:]))))
    cells.append("right" if not failed else f"{len(failed)} not")
    return f"| {family} | " + " | ".join(cells) + " |", failed


def _depth(file):
    found = re.search(r"_[RXw]_?(\d+)", file.stem)
    return (int(found[1]) if found else 0, file.stem)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="folder with Detectron2's configs and projects")
    parser.add_argument("--norm", default="EvoNormS0", help="layer (%(default)s)")
    parser.add_argument(
        "--one", action="store_true", help="build one model of each family, the smallest by name"
    )
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="configs whose path holds a TEXT")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        get_norm_act(args.norm, 32)
        families = find_configs(args.checkout.resolve(), args.only)
        if not families:
            raise InputError(f"{args.checkout}/ has no configs/ or projects/ of Detectron2")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # What projects read data with, which no model needs.
    missing = [name for name in ("panopticapi", "av") if importlib.util.find_spec(name) is None]
    for name in ("panopticapi", "panopticapi.utils", "av"):
        if name.partition(".")[0] in missing:
            sys.modules[name] = mock.MagicMock()
    deform_conv.modulated_deform_conv = on_cpu
    deform_conv.deform_conv = lambda *a: on_cpu(*a[:2], None, a[2], None, *a[3:])
    print("| " + " | ".join(("family", *COLUMNS)) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|", flush=True)
    failures = []
    for number, (family, files) in enumerate(families.items(), 1):
        print(f"{number}/{len(families)} {family}", file=sys.stderr, flush=True)
        line, failed = row(family, files, args.norm, args.one)
        print(line, flush=True)
        failures += failed
    print("\n" + "\n".join(f"- {failure}" for failure in failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
