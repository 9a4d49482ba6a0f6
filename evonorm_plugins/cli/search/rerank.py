"""Train whole models with each of the best layers of a search: the mean of a layer's accuracies is
its new rank, and the best three are kept as layer files (paper, Section 5.2).

Models, data and schedules are those of classifiers' configs, one or several. With holdout=10% a
tenth of the training set decides, whatever the configs have as val_data. The trainings are a sweep
in the folder of --out.
"""

import json
import re
import sys

from evonorm_plugins.cli.types import count
from evonorm_plugins.command import seed_list
from evonorm_plugins.errors import ConfigError

EXAMPLES = """
examples:
  the ten best of a search, and two layers beside them:
    evonorm search rerank output/search_B.sqlite --out output/rerank \\
        --config cifar10_resnet50_BN-ReLU --config cifar10_mobilenetv2_BN-ReLU \\
        --config cifar10_efficientnet_b0_BN-ReLU --norms BN-ReLU EvoNormB0 \\
        data=cifar10-train.zip holdout=10%
  layers by name, file or formula:
    evonorm search rerank --layers Candidate-B1 layer.json "tanh(x)" --out output/rerank \\
        --config cifar10_resnet50_BN-ReLU data=cifar10-train.zip holdout=10%
"""


def add_arguments(parser):
    parser.add_argument("store", nargs="?", metavar="STORE", help="of a search, or give --layers")
    parser.add_argument(
        "--layers", nargs="+", default=[], help="names, .json files or formulas, not a search's"
    )
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        metavar="NAME",
        help="of `evonorm classify`; given several times: a model each",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the sweep")
    parser.add_argument("--count", type=count, help="layers of the search (default: 10)")
    parser.add_argument("--keep", type=count, default=3, help="of them (default: %(default)s)")
    parser.add_argument("--norms", nargs="+", default=[], help="other layers beside them")
    parser.add_argument(
        "--seeds", type=seed_list, default=[], metavar="0,1", help="of each training (default: 0)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in the folder")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster (default: this machine)"
    )
    parser.add_argument("--json", action="store_true", help="the ranking as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the files'")


def run(args):
    from evonorm_plugins.classification import sweep
    from evonorm_plugins.classification.config import held_out
    from evonorm_plugins.search import ranking, rerank
    from evonorm_plugins.training.cluster import end_process

    overrides = held_out(_take_overrides(args))
    contenders = _contenders(args)
    path = rerank.write_sweep(
        contenders,
        args.config,
        args.out,
        norms=args.norms,
        seeds=args.seeds,
        overrides=overrides,
        resume=args.resume,
    )
    loaded = sweep.load_sweep(path, overrides)
    records = sweep.run_sweep(loaded, address=args.address, resume=args.resume, on_hang=end_process)
    ranks = ranking.ranking(loaded.search, records)
    kept = rerank.keep(ranks, contenders, path.parent, args.keep)
    print(json.dumps(ranking.plain(ranks)) if args.json else ranking.table(ranks))
    for norm, file in kept.items():
        print(f"kept {norm}: NORM: {file} in a config", file=sys.stderr)
    failed = sum(record["status"] == "failed" for record in records)
    if failed:
        print(f"{failed} trainings failed: --resume runs them again", file=sys.stderr)
    return 1 if failed or not kept else 0


def _contenders(args):
    from evonorm_plugins.search import rerank
    from evonorm_plugins.search.store import Store

    if bool(args.layers) == bool(args.store):
        raise ConfigError("give the file of a search, or --layers with names, files or formulas")
    if args.layers:
        if args.count:
            raise ConfigError(f"--count {args.count} is of a search's layers, not of --layers")
        return rerank.named(args.layers)
    with Store(args.store) as store:
        return rerank.best_of(store, args.count or rerank.COUNT)


def _take_overrides(args):
    """Every ``key=value``: argparse takes them for one more norm, and so on, behind those."""
    found = []
    for key in ("layers", "norms", "overrides"):
        given = getattr(args, key)
        found += filter(_is_override, given)
        setattr(args, key, [text for text in given if not _is_override(text)])
    if args.store and _is_override(args.store):
        found, args.store = [args.store, *found], None
    if args.overrides:  # what is left
        raise ConfigError(f"{args.overrides[0]!r} is not of the form key=value")
    return found


def _is_override(text):
    # No layer's name and no formula has a "=" so early.
    return re.match(r"\w+=", text) is not None
