"""Put one layer through the filters and train it, as a search does with a candidate.

The layer is a formula, a layer file, or the name of a layer of the paper.
"""

import dataclasses
import json
import sys

from evonorm_plugins.cli.search.common import add_config
from evonorm_plugins.cli.types import count

EXAMPLES = """
examples:
  evonorm search try EvoNormB0 --config B data=cifar10-train.zip
  evonorm search try "x * sigmoid(v1 * x) / std_{w,h,c/g}(x)" --config small \\
      data=cifar10-train.zip steps=100 max_val_images=2000
"""


def add_arguments(parser):
    parser.add_argument(
        "layer",
        help="formula (in brackets if it begins with -), layer file (.json), or name: EvoNormB0",
    )
    add_config(parser)
    parser.add_argument("--threads", type=count, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(args):
    import torch

    from evonorm_plugins.search.config import Task, from_dict
    from evonorm_plugins.search.evaluate import evaluate
    from evonorm_plugins.search.find import find_layer
    from evonorm_plugins.search.report import describe
    from evonorm_plugins.search.store import Candidate
    from evonorm_plugins.training.config import read_values

    graph = find_layer(args.layer)
    values = read_values(args.config, args.overrides, "search")
    config = from_dict({"candidates": 1, **values})
    torch.set_num_threads(args.threads)
    found = evaluate(graph, config, progress=_say)
    if args.json:
        task = {field.name: getattr(config, field.name) for field in dataclasses.fields(Task)}
        about = {"formula": str(graph), "task": task}
        print(json.dumps({**about, **dataclasses.asdict(found)}))
        return
    values = dataclasses.asdict(found)
    del values["cpu_seconds"]
    status = "passed" if found.filter is None else "rejected"
    print(describe(Candidate(None, graph, status=status, **values)))


def _say(stage):
    print(f"{stage} ...", file=sys.stderr, flush=True)
