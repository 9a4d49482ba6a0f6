"""Pictures of one search, or of several side by side.

top: mean and deviation of the ten best against different candidates; time: all that passed, by the
clock; histogram: how many layers have which accuracy; quality: the same after the steps of the
quality filter; calibration: the accuracy on each anchor against that on the others. A baseline, as
BN-ReLU in the paper, is a dashed line or a mark in each of them.
"""

import json
import sys
from pathlib import Path

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.plots import is_ours, labelled
from evonorm_plugins.search.figures import FIGURES

EXAMPLES = """
examples:
  evonorm search plot top evolution=a.sqlite random=b.sqlite --out top.png
  evonorm search plot calibration "seed 0=a.sqlite" --out calibration.png
  evonorm search try BN-ReLU --config B data=cifar10-train.zip --json > bn.json
  evonorm search plot top evolution=a.sqlite --baseline BN-ReLU=bn.json --out top.png
"""


def add_arguments(parser):
    parser.add_argument("figure", choices=FIGURES, metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("stores", nargs="+", metavar="LABEL=STORE")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="LABEL=FILE",
        help="what `evonorm search try --json` printed of a layer on the same task",
    )
    parser.add_argument("--out", required=True, metavar="FILE.png")
    parser.add_argument("--force", action="store_true", help="replace a file of another kind")


def run(args):
    from evonorm_plugins.files import check_output
    from evonorm_plugins.search.config import check_same_task
    from evonorm_plugins.search.store import Store

    paths, files = labelled(args.stores, "STORE"), labelled(args.baseline, "FILE")
    inputs = [*paths.values(), *files.values()]
    check_output(args.out, inputs=inputs, force=args.force, ours=is_ours)
    baselines = {label: _read_baseline(path, args.figure) for label, path in files.items()}
    searches = {}
    for label, path in paths.items():
        with Store(path) as store:
            for name, found in baselines.items():
                check_same_task(found["task"], store.config, files[name], path)
            searches[label] = store.finished()
    everything = [c for candidates in searches.values() for c in candidates]
    if args.figure == "quality":
        if not any("quality" in c.details for c in everything):
            raise ConfigError(f"no candidate of {' '.join(args.stores)} came to the quality filter")
    elif not any(c.scores for c in everything):
        raise ConfigError(f"no candidate of {' '.join(args.stores)} has passed yet")
    FIGURES[args.figure](searches, args.out, baselines)
    print(f"wrote {args.out}", file=sys.stderr)


def _read_baseline(path, figure):
    """What a file of ``evonorm search try --json`` holds, if a figure can show it."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        scores, task = found["scores"], found["task"]
        accuracies = found["details"].get("quality", {}) if figure == "quality" else scores
        fits = all(set(accuracies) >= set(task["anchors"]) and a >= 0 for a in accuracies.values())
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--baseline {path} holds nothing that `evonorm search try --json` printed "
            f"({type(error).__name__})"
        ) from None
    if not (accuracies and fits):
        where = "at the quality filter" if figure == "quality" else "of whole trainings"
        raise ConfigError(f"--baseline {path} has no accuracies {where} of {task['anchors']}")
    return found
