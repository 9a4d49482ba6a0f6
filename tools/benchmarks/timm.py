"""Time and memory of one training iteration of timm's models: its layers, ours, and BN.

"timm" is the model as timm builds it, "fused" what evonorm_plugins.integrations.timm.fuse makes of
it, "BN" the model of the same name with batch normalization, where timm has one. 8 images. "peak
MiB" is as of tools/benchmark.py models.
"""

import argparse

from evonorm_plugins.cli.bench import add_measuring, begin, check, show
from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.text_table import markdown

EXAMPLES = """
examples:
  tools/benchmark.py timm
  tools/benchmark.py timm --models resnetv2_50d_evos --size 160 --rounds 5 --csv timm.csv
"""


def model_name(text):
    import timm

    if text not in timm.list_models():
        raise argparse.ArgumentTypeError(f"timm has no model {text!r}")
    return text


def add_arguments(parser):
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        type=model_name,
        metavar="MODEL",
        help="of timm (default: all whose name ends in _evos, _evob, _gn or _frn)",
    )
    add("--size", type=count, default=160, help="side of the images (default: %(default)s)")
    add("--rounds", type=count, default=5, help="(default: %(default)s)")
    add_measuring(parser)


def run(args):
    if args.plot:
        raise ConfigError(f"--plot {args.plot}: this benchmark draws nothing")
    check(args, "--models", (), None)

    from benchmarks.training import bn_sibling, run_model

    begin(args)
    rows = []
    for name in dict.fromkeys(args.models or all_models()):
        norms = ["timm", "fused", *(["BN"] if bn_sibling(name) else [])]
        rows += run_model(args, f"timm:{name}", norms)
    show(args, rows, "size", report, None)


def all_models():
    """Names of timm's models with other norms than batch normalization."""
    import timm

    from benchmarks.training import TIMM_NORMS

    endings = tuple(f"_{norm}" for norm in TIMM_NORMS)
    return [name for name in timm.list_models() if name.endswith(endings)]


def report(rows):
    """One line for each model: what the fused one takes beside the other two."""
    of = {}
    for row in rows:
        of.setdefault(row["model"].removeprefix("timm:"), {})[row["norm"]] = row
    columns = ("model", "timm ms", "fused ms", "BN ms", "fused / timm", "fused / BN")
    columns += ("timm MiB", "fused MiB", "BN MiB", "fused / timm", "fused / BN")
    lines = []
    for name, by_norm in of.items():
        cells = [f"`{name}`"]
        for key, digits in (("median_ms", 0), ("peak_MiB", 0)):
            values = [by_norm[n][key] if n in by_norm else None for n in ("timm", "fused", "BN")]
            cells += [_shown(value, digits) for value in values]
            cells += [_shown(rival and values[1] / rival, 2) for rival in (values[0], values[2])]
        lines.append(tuple(cells))
    return markdown(columns, lines)


def _shown(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"
