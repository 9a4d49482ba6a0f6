"""Measure the filters of a search: what each costs, refuses, and refuses wrongly.

On a sample of candidates: the paper's layers, random ones and children of the paper's, those that
pass the trial. Each is put to all filters of the config, and trained to the end whatever they say.
What passes the paper's two filters is good; the table says how much of it each filter would have
refused. Results are in the file that the option store names; the same command goes on with it.
"""

import json
import sys

from evonorm_plugins.cli.search.common import add_config

EXAMPLES = """
examples:
  evonorm search filters --config quick data=cifar10-train.zip candidates=60 \\
      store=output/filters.sqlite
"""


def add_arguments(parser):
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")


def run(args):
    import torch

    from evonorm_plugins.errors import ConfigError
    from evonorm_plugins.search.config import load_config
    from evonorm_plugins.search.data import check_data
    from evonorm_plugins.search.measure import ask_filters, numbers, text
    from evonorm_plugins.search.run import open_store

    config = load_config(args.config, args.overrides)
    if config.candidates is None:
        raise ConfigError("give candidates=NUMBER: of the sample")
    torch.set_num_threads(config.cpus_per_worker)
    with open_store(config, True, lambda: check_data(config), kind="filters") as store:
        ask_filters(store, config, _say)
        found = numbers(store.finished()[: config.candidates], config)
    print(json.dumps(found) if args.json else text(found))


def _say(candidate):
    refused = ", ".join(candidate.details["refused"]) or "passed"
    print(f"candidate {candidate.number}: {refused}  {candidate.graph}", file=sys.stderr)
