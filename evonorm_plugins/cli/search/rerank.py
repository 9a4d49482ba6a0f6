"""Train a whole model with each of the best layers of a search: a sweep over norms.

Model, data and schedule are those of a classifier's config. With holdout=NUMBER images held out of
the training set decide, as in the paper, whatever the config has as val_data.
"""

import re

from evonorm_plugins.cli.types import count
from evonorm_plugins.search.report import TOP

EXAMPLES = """
examples:
  evonorm search rerank output/search_B.sqlite --config cifar10_resnet50_EvoNormS0 \\
      --out output/rerank --norms BN-ReLU EvoNormB0 data=cifar10-train.zip holdout=5000
"""


def add_arguments(parser):
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--config", required=True, metavar="NAME", help="of `evonorm classify`")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the sweep")
    parser.add_argument("--count", type=count, default=TOP, help="layers (default: %(default)s)")
    parser.add_argument("--norms", nargs="+", default=[], help="other layers beside them")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in the folder")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster (default: this machine)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")


def run(args):
    from evonorm_plugins.classification import sweep
    from evonorm_plugins.classification.config import held_out
    from evonorm_plugins.search.rerank import write_sweep
    from evonorm_plugins.search.store import Store

    # Behind --norms argparse takes key=value for one more norm; no norm's name has a "=" so early.
    overrides = held_out([*args.overrides, *filter(_is_override, args.norms)])
    norms = [norm for norm in args.norms if not _is_override(norm)]
    options = {"count": args.count, "norms": norms, "resume": args.resume}
    with Store(args.store) as store:
        path = write_sweep(store, args.config, args.out, **options)
    return sweep.main(path, overrides, resume=args.resume, address=args.address)


def _is_override(text):
    return re.match(r"\w+=", text) is not None
