"""Write a search as one page of HTML: the best layers typeset, the front, what the filters refuse
and cost, the ancestry of the best, pictures, settings, and the command behind every number.

The page needs no network and no other file. While the search runs it shows what is known by then.
"""

import sys

EXAMPLES = """
examples:
  evonorm search report output/search_B.sqlite search_B.html
"""


def add_arguments(parser):
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("out", metavar="OUT.html")
    parser.add_argument("--force", action="store_true", help="replace a file of another kind")


def run(args):
    from evonorm_plugins.files import check_output
    from evonorm_plugins.search.page import is_page, write_page
    from evonorm_plugins.search.store import Store

    with Store(args.store) as store:
        given = {"name": "OUT.html", "inputs": [args.store], "force": args.force}
        check_output(args.out, ours=is_page, **given)
        write_page(store, args.out)
    print(f"wrote {args.out}", file=sys.stderr)
