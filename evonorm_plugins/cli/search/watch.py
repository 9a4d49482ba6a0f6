"""Follow a search in the terminal: how far it is, what its filters refuse, its best layers.

The page shows the counts and rates of `show`, the best layers, the front (those that no other beats
on all anchors), and from which candidates the best one descends. It only reads the store, and ends
with Ctrl-C.
"""

import sys
import time

from evonorm_plugins.cli.types import positive

EXAMPLES = """
examples:
  evonorm search watch output/search_B.sqlite
  evonorm search watch output/search_B.sqlite --once
"""
_CLEAR = "\x1b[H\x1b[2J"  # the cursor to the first line, and nothing on the screen


def add_arguments(parser):
    parser.add_argument("store", metavar="STORE")
    parser.add_argument(
        "--seconds", type=positive, default=5.0, help="between two looks (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="print the page and end")


def run(args):
    from evonorm_plugins.search.report import page
    from evonorm_plugins.search.store import Store

    start = "" if args.once or not sys.stdout.isatty() else _CLEAR
    try:
        while True:
            with Store(args.store) as store:
                print(f"{start}{args.store}\n{page(store)}", flush=True)
            if args.once:
                return
            time.sleep(args.seconds)
    except KeyboardInterrupt:
        return
