"""Try the driver, the store and Ray with workers that only wait: how fast a search can be.

Candidates take as long as their graphs decide, log-normal around --seconds for one that passes.
"""

import json
from pathlib import Path

from evonorm_plugins.cli.types import count, positive

EXAMPLES = """
examples:
  evonorm search simulate --workers 5000 --candidates 50000 --seconds 60
  evonorm search simulate --quick --workers 5000 --candidates 50000 --seconds 60
  evonorm search simulate --workers 40 --candidates 200 --seconds 0.1 --json
"""


def add_arguments(parser):
    add = parser.add_argument
    add("--workers", type=count, default=5000, help="(default: %(default)s)")
    add("--candidates", type=count, default=20_000, help="results in all (default: %(default)s)")
    add(
        "--seconds",
        type=positive,
        default=60.0,
        help="mean of a candidate that passes (default: %(default)s)",
    )
    add("--processes", type=count, default=10, help="that hold the workers (default: %(default)s)")
    add("--random", action="store_true", help="random search, not evolution")
    add("--quick", action="store_true", help="with what configs/search/quick.yaml has")
    add("--store", type=Path, help="keep the results; else they are discarded")
    add("--json", action="store_true", help="numbers as JSON")


def run(args):
    from evonorm_plugins.search.simulated import run_simulation, simulation_report
    from evonorm_plugins.training.cluster import end_process

    numbers = run_simulation(
        args.workers,
        args.candidates,
        args.seconds,
        processes=args.processes,
        random_share=1.0 if args.random else 0.5,
        quick=args.quick,
        path=args.store,
        on_hang=end_process,
    )
    print(json.dumps(numbers) if args.json else simulation_report(numbers))
