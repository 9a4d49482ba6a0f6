"""One candidate of a search; without a number the whole search: counts and costs by outcome.

--json has, beside these, what each filter was given and refused, and the options of the search.
"""

import json

from evonorm_plugins.cli.search.common import find_candidate
from evonorm_plugins.search.report import describe, numbers, plain, summary

EXAMPLES = """
examples:
  evonorm search show output/search_B.sqlite
  evonorm search show output/search_B.sqlite 1234
"""


def add_arguments(parser):
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("number", type=int, nargs="?", metavar="NUMBER", help="of a candidate")
    parser.add_argument("--json", action="store_true", help="the same, and more, as JSON")


def run(args):
    from evonorm_plugins.search.store import Store

    with Store(args.store) as store:
        if args.number is None:
            found = numbers(store, store.config.get("cpus_per_worker", 1))
            found, as_text = {**found, "options": store.config}, summary
        else:
            candidate = find_candidate(store, args.number)
            found, as_text = plain(candidate), lambda _: describe(candidate)
    print(json.dumps(found) if args.json else as_text(found))
