"""Search for layers: from the beginning, or with --resume from where a search stopped.

Results are written to the file that the option store names, one by one. What the search found is
printed at its end, and by ``show`` and ``top`` at any time.
"""

import json

from evonorm_plugins.cli.search.common import add_config

EXAMPLES = """
examples:
  an hour on this machine:
    evonorm search run --config B data=cifar10-train.zip hours=1
  on a Ray cluster whose machines see the same files; the same command with --resume goes on:
    evonorm search run --config S --address HOST:6379 \\
        data=/data/cifar10-train.zip candidates=100000 workers=5000
"""


def add_arguments(parser):
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the search in the store")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster (default: this machine)"
    )
    parser.add_argument("--json", action="store_true", help="numbers at the end as JSON")


def run(args):
    from evonorm_plugins.search.config import load_config
    from evonorm_plugins.search.driver import queue_text
    from evonorm_plugins.search.report import summary
    from evonorm_plugins.search.run import run_search
    from evonorm_plugins.training.cluster import end_process

    config = load_config(args.config, args.overrides)
    numbers = run_search(config, address=args.address, resume=args.resume, on_hang=end_process)
    if args.json:
        print(json.dumps(numbers))
    else:
        print(summary(numbers), queue_text(numbers["queue"]), sep="\n")
