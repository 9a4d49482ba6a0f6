"""Time and memory of one training iteration (forward, backward, step of SGD) by norm.

The models are torchvision's ResNet-50 (8 images) and Detectron2's Mask R-CNN R-50-FPN (1 image, 8
objects).

"peak MiB" is the largest memory above that before the first of two iterations, in a process of its
own: activations, gradients, momenta and what is in use meanwhile. "kept MiB" is what autograd keeps
between forward and backward, parameters and buffers aside.
"""

import argparse

from evonorm_plugins.cli.bench import add_measuring, begin, check, show
from evonorm_plugins.cli.types import count

MODELS = ("resnet50", "mask_rcnn")
NORMS = ("BN", "GN", "EvoNormS0", "EvoNormB0")
EXAMPLES = """
examples:
  tools/benchmark.py models
  tools/benchmark.py models --models resnet50 --size 128 --rounds 5 --csv models.csv
  tools/benchmark.py models --norms BN EvoNormS0 "EvoNormS0(impl='torch')" --plot models.png
"""


def norm_name(text):
    from benchmarks.training import check_norm

    try:
        check_norm(text)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return text


def add_arguments(parser):
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        choices=MODELS,
        default=MODELS,
        metavar="MODEL",
        help=f"of {', '.join(MODELS)} (default: all)",
    )
    add(
        "--norms",
        nargs="+",
        type=norm_name,
        default=NORMS,
        metavar="NORM",
        help=f"BN, GN or any name of this package (default: {' '.join(NORMS)})",
    )
    add("--size", type=count, help="side of the images (default: 224 and 640)")
    add("--rounds", type=count, default=10, help="(default: %(default)s)")
    add_measuring(parser)


def run(args):
    check(args, "--norms", args.norms, "BN")

    from benchmarks.models_report import models_report, plot_models
    from benchmarks.training import run_models

    begin(args)
    show(args, run_models(args), "model", models_report, plot_models)
