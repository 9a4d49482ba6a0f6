"""Pictures of one search, or of several side by side.

top: mean and deviation of the ten best against different candidates; histogram: how many layers
have which accuracy; quality: the same after the steps of the quality filter; calibration: the
accuracy on each anchor against that on the others.
"""

import sys

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.plots import is_ours
from evonorm_plugins.search.figures import FIGURES

EXAMPLES = """
examples:
  evonorm search plot top evolution=a.sqlite random=b.sqlite --out top.png
  evonorm search plot calibration "seed 0=a.sqlite" --out calibration.png
"""


def add_arguments(parser):
    parser.add_argument("figure", choices=FIGURES, metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("stores", nargs="+", metavar="LABEL=STORE")
    parser.add_argument("--out", required=True, metavar="FILE.png")
    parser.add_argument("--force", action="store_true", help="replace a file of another kind")


def run(args):
    from evonorm_plugins.files import check_output
    from evonorm_plugins.search.store import Store

    paths = dict(_labelled(args.stores))
    check_output(args.out, inputs=paths.values(), force=args.force, ours=is_ours)
    searches = {}
    for label, path in paths.items():
        with Store(path) as store:
            searches[label] = store.finished()
    everything = [c for candidates in searches.values() for c in candidates]
    if args.figure == "quality":
        if not any("quality" in c.details for c in everything):
            raise ConfigError(f"no candidate of {' '.join(args.stores)} came to the quality filter")
    elif not any(c.scores for c in everything):
        raise ConfigError(f"no candidate of {' '.join(args.stores)} has passed yet")
    FIGURES[args.figure](searches, args.out)
    print(f"wrote {args.out}", file=sys.stderr)


def _labelled(stores):
    labels = [text.partition("=")[0] for text in stores]
    for text, label in zip(stores, labels, strict=True):
        _, equals, path = text.partition("=")
        if not (equals and label and path):
            raise ConfigError(f"{text!r} is not of the form LABEL=STORE")
        if labels.count(label) > 1:
            raise ConfigError(f"the label {label!r} is there twice")
        yield label, path
