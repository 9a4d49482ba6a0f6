"""The layers of a sweep over norms in the order of their accuracies, also while it runs.

The mean is that of all models, its deviation that of the seeds.
"""

import json

EXAMPLES = """
examples:
  evonorm search ranking output/rerank
  evonorm search ranking output/candidates --json
"""


def add_arguments(parser):
    parser.add_argument("folder", metavar="FOLDER", help="of a sweep, or of rerank")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args):
    from evonorm_plugins.search import ranking

    ranks = ranking.ranking(*ranking.read_sweep(args.folder))
    print(json.dumps(ranking.plain(ranks)) if args.json else ranking.table(ranks))
