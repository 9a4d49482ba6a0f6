"""Write a candidate of a search as a layer file, which every norm option takes."""

from evonorm_plugins.cli.search.common import (
    add_layer_output,
    check_layer_output,
    find_candidate,
    say_written,
)

EXAMPLES = """
examples:
  evonorm search export output/search_B.sqlite 1234 layer.json
"""


def add_arguments(parser):
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("number", type=int, metavar="NUMBER", help="of a candidate")
    add_layer_output(parser)


def run(args):
    from evonorm_plugins.search.store import Store

    with Store(args.store) as store:
        candidate = find_candidate(store, args.number)
    check_layer_output(args, inputs=[args.store])
    candidate.export(args.out)
    say_written(args.out, candidate.graph)
