#!/usr/bin/env python
"""Count the multiply-adds of one image through a Mask R-CNN or Faster R-CNN, part by part.

A fused multiply-add counts as one. Convolutions and fully connected layers are counted, and norms
with their activations: those of this package by their operations, batch normalization as 2 and
group normalization as 5 for each element (fvcore's numbers). A separate ReLU, the residual
addition, RoIAlign and the choice of boxes count nothing. Layers are in inference mode.

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
import logging
import sys
from pathlib import Path

PARTS = ("bottom-up", "FPN", "RPN head", "box head", "mask head")
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
        ValueError: the model has other parts, or the size does not suit it.
    """
    import torch
    from detectron2.modeling import build_model

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or "res5" in cfg.MODEL.ROI_HEADS.NAME.lower():
        raise ValueError("only Mask R-CNN and Faster R-CNN with FPN can be counted part by part")
    heads = cfg.MODEL.ROI_HEADS
    if box_rois is None:
        box_rois = heads.BATCH_SIZE_PER_IMAGE
    if mask_rois is None:
        mask_rois = int(heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION)
    model = build_model(cfg).eval()
    step = model.backbone.size_divisibility
    if size < 1 or size % (step or 1):
        raise ValueError(f"--size {size} must be a multiple of {step}")

    analysis = _analyse(model.backbone, torch.zeros(1, 3, size, size))
    bottom_up = analysis.total("model.bottom_up")
    parts = {"bottom-up": bottom_up, "FPN": analysis.total() - bottom_up}
    conv_fc = _conv_fc(analysis)

    def add(part, function, *inputs):
        nonlocal conv_fc
        analysis = _analyse(function, *inputs)
        parts[part] = analysis.total()
        conv_fc += _conv_fc(analysis)

    shapes = model.backbone.output_shape()
    levels = [shapes[f] for f in cfg.MODEL.RPN.IN_FEATURES]
    features = [torch.zeros(1, s.channels, size // s.stride, size // s.stride) for s in levels]
    add("RPN head", model.proposal_generator.rpn_head, features)
    channels = shapes[heads.IN_FEATURES[0]].channels
    roi = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    roi_heads = model.roi_heads
    box = torch.nn.Sequential(roi_heads.box_head, roi_heads.box_predictor)
    add("box head", box, torch.zeros(box_rois, channels, roi, roi))
    if cfg.MODEL.MASK_ON:
        roi = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        add("mask head", _Layers(roi_heads.mask_head), torch.zeros(mask_rois, channels, roi, roi))
    return {
        "parts": {name: int(parts.get(name, 0)) for name in PARTS},
        "total": int(sum(parts.values())),
        "conv_fc": int(conv_fc),
        "size": size,
        "box_rois": box_rois,
        "mask_rois": mask_rois if cfg.MODEL.MASK_ON else 0,
    }


def _Layers(head):
    """A mask head without what makes masks of predicted instances from its logits."""
    from torch import nn

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head.layers(x)

    return Layers()


def _analyse(module, *inputs):
    from detectron2.utils.analysis import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, inputs)
    return analysis.tracer_warnings("none").uncalled_modules_warnings(False)


def _conv_fc(analysis):
    return sum(analysis.by_operator()[operation] for operation in MATRIX_OPERATIONS)


def table(results):
    """Rows of text: billions of multiply-adds, a column for each config."""
    names = [Path(file).stem for file in results]
    rows = [("G multiply-adds", *names)]
    for part in PARTS:
        rows.append((part, *(f"{r['parts'][part] / 1e9:.2f}" for r in results.values())))
    rows.append(("total", *(f"{r['total'] / 1e9:.2f}" for r in results.values())))
    rows.append(
        ("convolutions and fc alone", *(f"{r['conv_fc'] / 1e9:.2f}" for r in results.values()))
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config files of Detectron2")
    parser.add_argument(
        "--size", type=int, default=1024, help="width and height of the image (%(default)s)"
    )
    for part, key in (("box", "BATCH_SIZE_PER_IMAGE"), ("mask", "the same x POSITIVE_FRACTION")):
        parser.add_argument(
            f"--{part}-rois",
            type=int,
            metavar="N",
            help=f"RoIs of the {part} head (default: MODEL.ROI_HEADS.{key})"
            if part == "box"
            else f"RoIs of the {part} head (default: {key})",
        )
    parser.add_argument("--json", action="store_true", help="print one JSON object by config file")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from detectron2.config import get_cfg

    import evonorm_plugins.integrations.detectron2  # noqa: F401

    logging.disable(logging.WARNING)
    results = {}
    for file in args.configs:
        print(f"counting {file}", file=sys.stderr)
        try:
            cfg = get_cfg()
            cfg.merge_from_file(file)
            results[file] = count_flops(cfg, args.size, args.box_rois, args.mask_rois)
        except (OSError, ValueError, KeyError) as error:
            print(f"error: {file}: {error}", file=sys.stderr)
            return 2
    print(json.dumps(results, indent=1) if args.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
