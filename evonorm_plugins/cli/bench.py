"""Time and memory of layers with kernels, and of what they replace, on tensors of several shapes.

Measured are forward, backward and both, and the memory that is kept from one to the other.

rivals:
  BN+ReLU, GN+ReLU, GN+SiLU   torch's modules; GN with 32 groups
  timm                        timm's EvoNorm2dS0 and B0
  torch                       the same layer of this package by its plain formula, impl="torch";
                              a layer graph node by node
  apex, Liger                 their GN+SiLU, on a GPU; not among the default ones
and always the floors, what reading and writing the tensors takes: "copy existing" copies one tensor
forward and one and a half backward (x, dy -> dx) into memory that is there; "copy fresh" allocates
y and dx, as a layer has to. The columns "of copy" are floor / time: 100% is as fast as memory.

"kept MiB" is what autograd keeps besides the input and the layer's own parameters and buffers.
BN+ReLU and GN+ReLU keep their output, which a convolution that follows keeps as well.
"""

import argparse
import json

from evonorm_plugins.benchmarks import (
    BATCH_NORMS,
    DTYPES,
    EVONORMS,
    LAYERS,
    LAYOUTS,
    OTHERS,
    PHASES,
    RIVALS,
    SHAPES,
)
from evonorm_plugins.cli.types import count, positive
from evonorm_plugins.errors import ConfigError

KNOWN = (*LAYERS, *BATCH_NORMS)
EXAMPLES = """
examples:
  evonorm bench
  evonorm bench --shapes 8x256x56x56 --layers EvoNormS0 --threads 1 --csv layers.csv
  evonorm bench --layers GN-ReLU GN-Swish-1 FRN "RS + rej"
  evonorm bench --layers layer.json --rivals torch
  evonorm bench --device cuda --dtype bfloat16 --layout channels_last --compiled
  evonorm bench --mode inference --rivals BN+ReLU --plot layers.png
"""


def parse_shape(text):
    """``"8x256x56x56"`` to ``(8, 256, 56, 56)``."""
    sizes = text.split("x")
    if len(sizes) != 4 or not all(s.isascii() and s.isdigit() and int(s) > 0 for s in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape like 8x256x56x56")
    return tuple(map(int, sizes))


def parse_layer(text):
    """The name of a layer that has kernels, or the file of a layer graph."""
    if text not in KNOWN and not text.endswith(".json"):
        known = ", ".join(map(repr, KNOWN))
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {known}, or the file of a layer graph, .json)"
        )
    return text


def add_arguments(parser):
    add = parser.add_argument
    add(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[parse_shape(s) for s in SHAPES],
        metavar="NxCxHxW",
        help=f"(default: {' '.join(SHAPES)})",
    )
    add(
        "--layers",
        nargs="+",
        type=parse_layer,
        default=EVONORMS,
        metavar="LAYER",
        help=f"of {', '.join(KNOWN)}, or layer graphs, layer.json (default: the EvoNorms)",
    )
    add(
        "--rivals",
        nargs="*",
        choices=(*RIVALS, *OTHERS),
        default=RIVALS,
        metavar="RIVAL",
        help=f"of {', '.join((*RIVALS, *OTHERS))} (default: {' '.join(RIVALS)})",
    )
    add("--compiled", action="store_true", help="timm and torch by torch.compile too (slow)")
    add(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=DTYPES[:2],
        metavar="DTYPE",
        help="of the tensors, not the parameters; a table shows the first, of others a column "
        f"(of {', '.join(DTYPES)}; default: {' '.join(DTYPES[:2])})",
    )
    add("--layout", choices=LAYOUTS, default="contiguous")
    add("--mode", choices=PHASES, default="train")
    add("--repeats", type=count, default=50, help="rounds at most (default: %(default)s)")
    add(
        "--seconds",
        type=positive,
        default=60.0,
        help="no round begins later than this on one shape (default: %(default)s)",
    )
    add_measuring(parser)


def add_measuring(parser):
    """The options that every benchmark has."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=count, help="of torch (default: torch's choice)")
    add("--csv", metavar="FILE", help="write all numbers")
    add("--plot", metavar="FILE.png", help="draw bars")
    add("--force", action="store_true", help="replace files that no benchmark wrote")
    add("--json", action="store_true", help="print JSON instead of tables")


def run(args):
    check(args, "--rivals", args.rivals, "BN+ReLU")

    from evonorm_plugins.benchmarks.layers import run_layers
    from evonorm_plugins.benchmarks.report import layers_report, plot_layers
    from evonorm_plugins.layers.graph.graph import Graph

    for name in args.layers:
        if name.endswith(".json"):
            Graph.load(name)  # what is wrong with it is said now

    begin(args)
    each = [argparse.Namespace(**{**vars(args), "dtype": dtype}) for dtype in args.dtype]
    rows = [row for options in each for row in run_layers(options)]
    show(args, rows, "shape", layers_report, plot_layers)


def check(args, option, names, base):
    """What no option alone can tell; now, not after minutes of measuring.

    Args:
        option, names, base: pictures show ratios to ``base``, which must be one of the ``names``
            given by ``option``.

    Raises:
        ConfigError: a device that is not there, or a file that cannot be written.
    """
    from evonorm_plugins import plots
    from evonorm_plugins.benchmarks import report
    from evonorm_plugins.files import check_output

    if args.plot:
        if base not in names:
            raise ConfigError(f"--plot shows ratios to {base}: add it to {option}")
        check_output(args.plot, name="--plot", force=args.force, ours=plots.is_ours)
        plots.pyplot()
    if args.csv:
        check_output(args.csv, name="--csv", force=args.force, ours=report.is_ours)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device")


def begin(args):
    import torch

    from evonorm_plugins.benchmarks.measure import warn_if_busy

    warn_if_busy()
    if args.threads:
        torch.set_num_threads(args.threads)


def show(args, rows, group, as_text, plot):
    """Print what was measured, write it where ``--csv`` and ``--plot`` say.

    Args:
        group: key of the rows that have a table together.
        as_text, plot: of the rows of a group, and of all with a path.
    """
    from evonorm_plugins import show_config
    from evonorm_plugins.benchmarks.measure import environment
    from evonorm_plugins.benchmarks.report import write_csv

    if args.csv:
        write_csv(args.csv, rows)
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        print(json.dumps({"config": show_config(), "rows": rows}, indent=1))
        return
    print("\n".join(f"{key}: {value}" for key, value in environment(args.device).items()))
    print(show_config())
    for name in dict.fromkeys(row[group] for row in rows):
        print("\n" + as_text([row for row in rows if row[group] == name]))
