#!/usr/bin/env python
"""Compare the moves and the choices of parents of a search's evolution, at a small cost.

Each variant runs as a search does, seed by seed, without Ray. What a layer scores is looked up in a
table, a search's store that all variants share, and found out and written there where it is
missing. So a second run of this command trains nothing, and gives the same. With --simulated the
scores are those of `evonorm search simulate`, and cost nothing.

examples:
  search_moves.py --simulated --candidates 2000 --seeds 10
  search_moves.py --table table.sqlite --config small data=cifar10-train.zip \\
      steps=40 "filters=[trial]" "anchors=[resnet8_cifar]" --candidates 200 --seeds 3
"""

import argparse
import functools
import statistics
import sys
import tempfile
from pathlib import Path

from evonorm_plugins.search.config import from_dict
from evonorm_plugins.search.driver import Driver
from evonorm_plugins.search.evaluate import Evaluation, evaluate
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.fingerprint import TOLERANCE, fingerprints
from evonorm_plugins.search.report import different
from evonorm_plugins.search.simulated import simulate
from evonorm_plugins.search.store import Candidate, Store
from evonorm_plugins.search.workers import Result
from evonorm_plugins.text_table import aligned
from evonorm_plugins.training.config import read_values, to_dict

VARIANTS = {
    "the paper's": {},
    "live": {"moves": ["live"]},
    "live, insert, remove": {"moves": ["live", "insert", "remove"]},
    "live, crossover": {"moves": ["live", "crossover"]},
    "all": {"moves": ["live", "insert", "remove", "crossover"]},
    "the front": {"winner": "front"},
    "all, the front": {"moves": ["live", "insert", "remove", "crossover"], "winner": "front"},
    "random": {"random_share": 1.0},
}


class Table:
    """Evaluations by layer, kept in a store."""

    def __init__(self, store, task):
        self.store, self.task, self.trained = store, task, 0

    def __call__(self, graph):
        own = fingerprints(graph)
        known = self.store.find(graph.digest())
        known = known or (self.store.find_near(own, TOLERANCE) if own else None)
        if known is None or known.status == "pending":
            known = self._add(graph, own, known)
        return Evaluation(known.filter, known.scores, known.details, known.seconds)

    def _add(self, graph, own, pending):
        number = self.store.next_number() if pending is None else pending.number
        if pending is None:
            self.store.propose(Candidate(number, graph, fingerprint=own[0] if own else None))
        e = evaluate(graph, self.task)
        self.trained += bool(e.scores)
        values = {"filter": e.filter, "scores": e.scores, "details": e.details}
        status = "rejected" if e.filter else "passed"
        self.store.record(number, status, seconds=e.seconds, **values)
        return self.store[number]


class Inline:
    """One worker in this process."""

    def __init__(self, evaluator):
        self.evaluator, self.given = evaluator, []

    @property
    def free(self):
        return 1 - len(self.given)

    def submit(self, number, graph):
        self.given.append((number, graph))

    def wait(self, seconds):
        number, graph = self.given.pop()
        return [Result(number, self.evaluator(graph))]


def search(options, seed, evaluator, candidates, same):
    """``(different candidates, those that passed, best, mean of the best ten, redrawn)``."""
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder, "s"), {}) as store:
        evolution = Evolution(seed=seed, **options)
        limits = {"candidates": candidates, "redraws": 100, "same": same}
        Driver(store, Inline(evaluator), evolution, **limits).run()
        found = different(store.finished())
        scores = sorted((c.score for c in found if c.scores), reverse=True)
        redrawn = sum(sum(c.redrawn.values()) for c in found)
        return len(found), len(scores), scores[0], statistics.fmean(scores[:10]), redrawn


def compare(evaluator, variants, candidates, seeds, same):
    rows = [["variant", "different", "passed", "best", "best ten", "of seeds", "redrawn"]]
    for name in variants:
        options = VARIANTS[name]
        found = [search(options, seed, evaluator, candidates, same) for seed in range(seeds)]
        mean = [statistics.fmean(column) for column in zip(*found, strict=True)]
        ten = " ".join(f"{run[3]:.4f}" for run in found)
        rows.append(
            [name, f"{mean[0]:.0f}", f"{mean[1]:.1f}", f"{mean[2]:.4f}", f"{mean[3]:.4f}", ten]
        )
        rows[-1].append(f"{mean[4]:.0f}")
        print(aligned([rows[0], rows[-1]]), file=sys.stderr, flush=True)
    print(aligned(rows))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true", help="scores that cost nothing")
    parser.add_argument("--table", help="the store of scores, made where there is none")
    parser.add_argument("--config", help="of the search whose scores they are")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="NAME")
    parser.add_argument("--candidates", type=int, default=200, help="of each search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    if args.simulated:
        # These scores are those of a structure.
        simulated = functools.partial(simulate, seconds=1.0)
        return compare(simulated, args.variants, args.candidates, args.seeds, "structure")
    if not (args.table and args.config):
        parser.error("give --simulated, or --table and --config")
    values = read_values(args.config, args.overrides, "search")
    task = from_dict({"candidates": 1, **values})
    path = Path(args.table)
    with Store(path, write=True) if path.exists() else Store.create(path, to_dict(task)) as store:
        table = Table(store, task)
        compare(table, args.variants, args.candidates, args.seeds, "function")
        print(f"{table.trained} trained, {len(store)} in {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
