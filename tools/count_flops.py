#!/usr/bin/env python
"""Count the multiply-adds of one image through a Mask R-CNN or Faster R-CNN, part by part.

A fused multiply-add counts as one. Convolutions and fully connected layers are counted, and norms
with their activations: those of this package by their operations, batch normalization as 2 and
group normalization as 5 for each element (fvcore's numbers). Upsampling in the feature pyramid is
1 for each element. A separate ReLU, the residual addition, RoIAlign and the choice of boxes count
nothing. Layers are in inference mode.

The heads run once for each region of interest (RoI). By default there are as many RoIs as training
samples: with the paper's recipe 512 for the box head and 128 for the mask head.

examples:
  the paper's table, ResNet-50:
    tools/count_flops.py detectron_configs/paper/mask_rcnn_R_50_FPN_*.yaml
  inference with 1000 proposals and 100 detections:
    tools/count_flops.py --box-rois 1000 --mask-rois 100 detectron_configs/paper/*.yaml
  for programs:
    tools/count_flops.py --json detectron_configs/stock/mask_rcnn_R_50_FPN_EvoNormS0.yaml

exit status: 0 done, 2 bad input
"""

import argparse
import json
import sys
from pathlib import Path

from evonorm_plugins.text_table import aligned

PARTS = ("bottom-up", "FPN", "RPN head", "box head", "mask head")
CONV_FC = "convolutions and fc alone"
MATRIX_OPERATIONS = ("conv", "linear", "addmm", "matmul")


def count_flops(cfg, size=1024, box_rois=None, mask_rois=None):
    """Multiply-adds of ``cfg``'s model for one image of ``size`` x ``size``.

    Args:
        cfg: of a ``GeneralizedRCNN`` with a feature pyramid; its model is built on the CPU.
        box_rois, mask_rois: how many RoIs the heads take; None for those training samples.

    Returns:
        dict: ``parts`` (name -> count), ``total``, ``conv_fc`` (what convolutions and fully
        connected layers have of it), ``size``, ``box_rois``, ``mask_rois``.

    Raises:
        ValueError: the model has other parts, or a number does not suit it.
    """
    import torch
    from detectron2.modeling import build_model

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or "fpn" not in cfg.MODEL.BACKBONE.NAME:
        raise ValueError("only Mask R-CNN and Faster R-CNN with FPN can be counted part by part")
    model = build_model(cfg).eval()
    step = model.backbone.size_divisibility
    if size < 1 or size % step:
        raise ValueError(f"--size {size} must be a multiple of {step}")

    samples = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    box_rois = samples if box_rois is None else box_rois
    if mask_rois is None:
        mask_rois = int(samples * cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
    if box_rois < 0 or mask_rois < 0:
        raise ValueError(f"there cannot be {min(box_rois, mask_rois)} RoIs")
    shapes = model.backbone.output_shape()
    channels = shapes[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels

    def features(feature):
        side = -(-size // shapes[feature].stride)
        return torch.zeros(1, shapes[feature].channels, side, side)

    def rois(number, head):
        return torch.zeros(number, channels, head.POOLER_RESOLUTION, head.POOLER_RESOLUTION)

    roi_heads, mask_on = model.roi_heads, cfg.MODEL.MASK_ON
    analyses = {
        "backbone": _analyse(model.backbone, torch.zeros(1, 3, size, size)),
        "RPN head": _analyse(
            model.proposal_generator.rpn_head, [features(f) for f in cfg.MODEL.RPN.IN_FEATURES]
        ),
        "box head": _analyse(
            torch.nn.Sequential(roi_heads.box_head, roi_heads.box_predictor),
            rois(box_rois, cfg.MODEL.ROI_BOX_HEAD),
        ),
    }
    if mask_on:
        analyses["mask head"] = _analyse(
            _logits_of(roi_heads.mask_head), rois(mask_rois, cfg.MODEL.ROI_MASK_HEAD)
        )
    counts = {part: int(analysis.total()) for part, analysis in analyses.items()}
    bottom_up = int(analyses["backbone"].total("model.bottom_up"))
    counts |= {"bottom-up": bottom_up, "FPN": counts["backbone"] - bottom_up}
    parts = {part: counts.get(part, 0) for part in PARTS}
    return {
        "parts": parts,
        "total": sum(parts.values()),
        "conv_fc": sum(map(_conv_fc, analyses.values())),
        "size": size,
        "box_rois": box_rois,
        "mask_rois": mask_rois if mask_on else 0,
    }


def _logits_of(mask_head):
    """A mask head that returns its logits, rather than instances with masks."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = mask_head

        def forward(self, x):
            return self.head.layers(x)

    return Logits()


def _analyse(module, *inputs):
    from detectron2.utils.analysis import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, inputs)
    analysis.tracer_warnings("none").uncalled_modules_warnings(False)
    return analysis.unsupported_ops_warnings(False)


def _conv_fc(analysis):
    return int(sum(analysis.by_operator()[operation] for operation in MATRIX_OPERATIONS))


def table(results):
    """Rows of text: billions of multiply-adds, a column for each config."""
    counts = [{**r["parts"], **r} for r in results.values()]
    rows = [("G multiply-adds", *(Path(file).stem for file in results))]
    for label, key in (*zip(PARTS, PARTS, strict=True), ("total", "total"), (CONV_FC, "conv_fc")):
        rows.append((label, *(f"{count[key] / 1e9:.2f}" for count in counts)))
    return aligned(rows)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config files of Detectron2")
    parser.add_argument(
        "--size", type=int, default=1024, help="width and height of the image (%(default)s)"
    )
    parser.add_argument(
        "--box-rois",
        type=int,
        metavar="N",
        help="RoIs of the box head (default: MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE)",
    )
    parser.add_argument(
        "--mask-rois",
        type=int,
        metavar="N",
        help="RoIs of the mask head (default: the same x MODEL.ROI_HEADS.POSITIVE_FRACTION)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object by config file")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from evonorm_plugins.errors import InputError
    from evonorm_plugins.integrations.detectron2.config import load_config

    results = {}
    for file in args.configs:
        print(f"counting {file}", file=sys.stderr)
        try:
            cfg, _ = load_config(file)
        except InputError as error:  # which names the file
            print(f"error: {error}", file=sys.stderr)
            return 2
        try:
            results[file] = count_flops(cfg, args.size, args.box_rois, args.mask_rois)
        except (OSError, ValueError, KeyError) as error:
            print(f"error: {file}: {error}", file=sys.stderr)
            return 2
    print(json.dumps(results, indent=1) if args.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
