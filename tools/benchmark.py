#!/usr/bin/env python
"""Measure EvoNorms against what they replace: layers on tensors, and norms in whole models.

All competitors run in one process, in turns, in an order that is drawn anew for each round; what
is reported are medians over the rounds.
"""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path

import torch
from benchmark_layers import LAYERS, LAYOUTS, RIVALS, run_layers
from benchmark_measure import PHASES, environment, say, warn_if_busy
from benchmark_models import MODELS, NORMS, check_norm, run_models
from benchmark_report import layers_report, models_report, plot_layers, plot_models, write_csv

import evonorm_plugins

SHAPES = ("8x256x56x56", "4x64x128x128", "2x256x200x200", "16x512x14x14")

LAYERS_HELP = """
Time of forward, backward and both, and the memory that is kept from one to the other, of EvoNorm
layers on tensors of several shapes.

rivals:
  BN+ReLU, GN+ReLU, GN+SiLU   torch's modules; GN with 32 groups
  timm                        timm's EvoNorm2dS0 and B0
  torch                       the same layer of this package by its plain formula, impl="torch"
and always the floors, what reading and writing the tensors takes: "copy existing" copies one tensor
forward and one and a half backward (x, dy -> dx) into memory that is there; "copy fresh" allocates
y and dx, as a layer has to. The columns "of copy" are floor / time: 100% is as fast as memory.

"kept MiB" is what autograd keeps besides the input and the layer's own parameters and buffers.
BN+ReLU and GN+ReLU keep their output, which a convolution that follows keeps as well.
"""
LAYERS_EXAMPLES = """
examples:
  tools/benchmark.py layers
  tools/benchmark.py layers --shapes 8x256x56x56 --layers EvoNormS0 --threads 1 --csv layers.csv
  tools/benchmark.py layers --device cuda --dtype bfloat16 --layout channels_last --compiled
  tools/benchmark.py layers --mode inference --rivals BN+ReLU --plot layers.png

exit status: 0 done, 1 failed, 2 bad input
"""
MODELS_HELP = """
Time and memory of one training iteration (forward, backward, step of SGD) of torchvision's
ResNet-50 (8 images) and of Detectron2's Mask R-CNN R-50-FPN (1 image, 8 objects), by norm.

"peak MiB" is the largest memory above that before the first of two iterations, in a process of its
own: activations, gradients, momenta and what is in use meanwhile. "kept MiB" is what autograd keeps
between forward and backward, parameters and buffers aside.
"""
MODELS_EXAMPLES = """
examples:
  tools/benchmark.py models
  tools/benchmark.py models --models resnet50 --size 128 --rounds 5 --csv models.csv
  tools/benchmark.py models --norms BN EvoNormS0 "EvoNormS0(impl='torch')" --plot models.png

exit status: 0 done, 1 failed, 2 bad input
"""


def parse_shape(text):
    """``"8x256x56x56"`` to ``(8, 256, 56, 56)``."""
    sizes = text.split("x")
    if len(sizes) != 4 or not all(s.isascii() and s.isdigit() and int(s) > 0 for s in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape like 8x256x56x56")
    return tuple(map(int, sizes))


def positive_int(text):
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def positive_float(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def norm_name(text):
    try:
        check_norm(text)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return text


def output_path(text):
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent} for {text}")
    return Path(text)


def picture_path(text):
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return output_path(text)


def add_layers(commands):
    parser = commands.add_parser(
        "layers",
        help="layers on tensors",
        description=LAYERS_HELP,
        epilog=LAYERS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shapes", nargs="+", type=parse_shape, default=[parse_shape(s) for s in SHAPES],
        metavar="NxCxHxW", help=f"(default: {' '.join(SHAPES)})")  # fmt: skip
    add("--layers", nargs="+", choices=LAYERS, default=LAYERS, metavar="LAYER",
        help=f"of {', '.join(LAYERS)} (default: all)")  # fmt: skip
    add("--rivals", nargs="*", choices=RIVALS, default=RIVALS, metavar="RIVAL",
        help=f"of {', '.join(RIVALS)} (default: all)")  # fmt: skip
    add("--compiled", action="store_true", help="timm and torch by torch.compile too (slow)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of the tensors; parameters stay in float32")  # fmt: skip
    add("--layout", choices=LAYOUTS, default="contiguous")
    add("--mode", choices=PHASES, default="train")
    add("--repeats", type=positive_int, default=50, help="rounds at most (%(default)s)")
    add("--seconds", type=positive_float, default=60.0,
        help="no round begins later than this on one shape (%(default)s)")  # fmt: skip
    return parser


def add_models(commands):
    parser = commands.add_parser(
        "models",
        help="norms in whole models",
        description=MODELS_HELP,
        epilog=MODELS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=tuple(MODELS), metavar="MODEL",
        help=f"of {', '.join(MODELS)} (default: all)")  # fmt: skip
    add("--norms", nargs="+", type=norm_name, default=NORMS, metavar="NORM",
        help=f"BN, GN or any name of this package (default: {' '.join(NORMS)})")  # fmt: skip
    add("--size", type=positive_int, help="side of the images (default: 224 and 640)")
    add("--rounds", type=positive_int, default=10, help="(%(default)s)")
    return parser


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for sub in (add_layers(commands), add_models(commands)):
        add = sub.add_argument
        add("--device", choices=("cpu", "cuda"), default="cpu")
        add("--threads", type=positive_int, help="of torch (default: torch's choice)")
        add("--csv", type=output_path, metavar="FILE", help="write all numbers")
        add("--plot", type=picture_path, metavar="FILE.png", help="draw bars")
        add("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(argv)
    # What no option alone can tell; here, not after minutes of measuring.
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if args.plot:
        option, base = ("rivals", "BN+ReLU") if args.command == "layers" else ("norms", "BN")
        if base not in getattr(args, option):
            parser.error(f"--plot shows ratios to {base}: add it to --{option}")
        try:
            importlib.import_module("matplotlib")
        except ImportError as error:
            parser.error(f"--plot needs matplotlib, which cannot be imported ({error})")
    return args


def report(args, rows):
    layers = args.command == "layers"
    if args.csv:
        write_csv(args.csv, rows)
    if args.plot:
        (plot_layers if layers else plot_models)(rows, args.plot)
    config = evonorm_plugins.show_config()
    if args.json:
        print(json.dumps({"config": config, "rows": rows}, indent=1))
        return
    print("\n".join(f"{key}: {value}" for key, value in environment(args.device).items()))
    print(config)
    group = "shape" if layers else "model"
    for name in dict.fromkeys(row[group] for row in rows):
        part = [row for row in rows if row[group] == name]
        print("\n" + (layers_report if layers else models_report)(part))


def main(argv=None):
    args = parse_args(argv)
    warn_if_busy()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        report(args, (run_layers if args.command == "layers" else run_models)(args))
    except (RuntimeError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
