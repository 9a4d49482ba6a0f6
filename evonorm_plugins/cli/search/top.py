"""The best layers of a search: number, validation accuracies of the anchors, formula."""

import json

from evonorm_plugins.cli.types import count
from evonorm_plugins.search.report import TOP, plain, table

EXAMPLES = """
examples:
  evonorm search top output/search_B.sqlite
  evonorm search top output/search_B.sqlite --count 100 --json
"""


def add_arguments(parser):
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--count", type=count, default=TOP, help="how many (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="all that is known of them as JSON")


def run(args):
    from evonorm_plugins.search.store import Store

    with Store(args.store) as store:
        best = store.best(args.count)
    if args.json:
        print(json.dumps([plain(candidate) for candidate in best]))
    else:
        print(table(best) if best else "no candidate has passed yet")
