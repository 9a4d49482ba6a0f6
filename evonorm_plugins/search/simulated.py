"""Candidates whose scores and costs are known: what a search's driver is tried with. No training.

The score of a graph is a sum over the pairs of operations in it, each with a weight that its name
decides. So a child shares much of its parent's score, as layers do, and the best are rare.
"""

import hashlib
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from evonorm_plugins.errors import StoreError
from evonorm_plugins.layers.graph.operations import INITIAL
from evonorm_plugins.search.driver import queue_text
from evonorm_plugins.search.evaluate import Evaluation
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.halving import Bars
from evonorm_plugins.search.run import drive
from evonorm_plugins.search.store import Store
from evonorm_plugins.search.workers import Workers
from evonorm_plugins.training.cluster import connect
from evonorm_plugins.training.memory import peak_memory

ANCHORS = ("first", "second", "third")
# Share of the full cost that the check of quality takes: 100 of 2,000 steps.
_QUALITY = 0.05
# Rung -> share of those steps that are done by then, and of what is learnt in all of them.
_RUNGS = {"25": (0.25, 0.4), "50": (0.5, 0.7)}
_GUESSING, _LOWEST = 0.1, 0.35
# What configs/search/quick.yaml has beside the paper, of evolution, of the driver, of its bars.
QUICK_EVOLUTION = {"moves": ("live", "insert", "remove", "crossover"), "winner": "front"}
QUICK_DRIVER = {"same": "function", "redraws": 100}
QUICK_BARS = (0.8, 0.75, 20)  # rung_share, top_share, least_results


def simulate(graph, seconds, bars=None):
    """The evaluation that a graph is given, without waiting.

    Args:
        seconds: mean cost of a candidate that passes; the costs are log-normal.
        bars: of the filters "rungs" and "top", see
            :meth:`evonorm_plugins.search.halving.Bars.now`; None: there are no such filters.

    Returns:
        :class:`Evaluation`: "constant" by structure, "quality" below 0.35 on any anchor, "rungs"
        and "top" below a bar.
    """
    if not graph.depends_on_x():
        return Evaluation("constant", seconds={"trial": 0.01})
    cost = random.Random(graph.digest()).lognormvariate(-0.125, 0.5) * seconds
    scores = {anchor: _score(graph, anchor) for anchor in ANCHORS}
    found = Evaluation(seconds={"trial": 0.01})
    left = _QUALITY * cost
    if bars is not None:
        passed, share = _climb(scores, bars, found.details)
        found.seconds["rungs"] = share * left
        left *= 1 - share
        if not passed:
            found.filter = "rungs"
            return found
    found.details["quality"], found.seconds["quality"] = scores, left
    if bars is not None:
        found.details["top"] = statistics.fmean(scores.values())
    if min(scores.values()) < _LOWEST:
        found.filter = "quality"
    elif found.details.get("top", 1) < (bars or {}).get("top", 0):
        found.filter = "top"
    else:
        found.scores, found.seconds["training"] = scores, (1 - _QUALITY) * cost
    return found


def _climb(scores, bars, details):
    """Whether all rungs are passed, and the share of the steps that are done by the last one."""
    details["rungs"] = {}
    for rung, (share, learnt) in _RUNGS.items():
        own = {a: _GUESSING + learnt * (score - _GUESSING) for a, score in scores.items()}
        details["rungs"][rung] = own
        if any(own[a] < bar for a, bar in bars.get(rung, {}).items()):
            return False, share
    return True, share


class Simulated:
    """Evaluator that takes as long as the evaluation says it would.

    Args:
        seconds: see :func:`simulate`.
    """

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, cpus):
        return self._evaluate

    def _evaluate(self, graph, bars=None):
        evaluation = simulate(graph, self.seconds, bars)
        time.sleep(sum(evaluation.seconds.values()))
        return evaluation


def run_simulation(
    workers,
    candidates,
    seconds,
    *,
    processes=10,
    random_share=0.5,
    quick=False,
    path=None,
    on_hang=None,
):
    """A whole search with Ray, store and evolution, whose candidates only wait.

    Args:
        workers: candidates that are evaluated at a time, in ``processes`` processes of this
            machine, so that many fit.
        candidates: results to end with.
        seconds: see :func:`simulate`.
        quick: with what ``configs/search/quick.yaml`` has: no layer twice by function, its moves
            and parents, and the filters that compare candidates.
        path: of the store; None keeps none.
        on_hang: see :func:`evonorm_plugins.training.cluster.connect`.

    Returns:
        Plain values: how fast it went, what the driver took, how long what waited (see
        :meth:`evonorm_plugins.search.driver.Driver.queue`), and what it found.

    Raises:
        StoreError: there is a store.
        RayError, RunError, InterruptedRunError: see :func:`evonorm_plugins.search.run.run_search`.
    """
    processes = min(processes, workers)
    about = {"simulated": {"workers": workers, "candidates": candidates, "seconds": seconds}}
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder, "search.sqlite")
        if path.exists():
            raise StoreError(f"{path} is there already: name another file for a new search")
        ray = connect(None, unit="worker", cpus=0, on_hang=on_hang)
        try:
            with Store.create(path, about) as store:
                slots = workers // processes
                pool = Workers(ray, Simulated(seconds), actors=processes, slots=slots, cpus=0)
                evolution = Evolution(
                    random_share=random_share, **(QUICK_EVOLUTION if quick else {})
                )
                pool.check()
                wall, used, before = time.perf_counter(), time.process_time(), _megabytes()
                options = {**QUICK_DRIVER, "bars": Bars(*QUICK_BARS)} if quick else {}
                driver = drive(store, pool, evolution, candidates=candidates, **options)
                wall, used = time.perf_counter() - wall, time.process_time() - used
                best = driver.store.best(10)
                return {
                    "results": driver.done,
                    "workers": processes * slots,
                    "repeated": driver.repeated,
                    "seconds": wall,
                    "driver_ms": used / driver.done * 1e3,
                    "megabytes": _megabytes(),
                    "megabytes_before": before,
                    "queue": driver.queue(),
                    "best_10": statistics.fmean(c.score for c in best) if best else None,
                }
        finally:
            ray.shutdown()


def simulation_report(numbers):
    """What :func:`run_simulation` gave, as text."""
    n = numbers
    lines = [
        f"{n['results']} results in {n['seconds']:.1f} s with {n['workers']} workers: "
        f"{n['results'] / n['seconds']:.0f} a second, {n['repeated']} of them equal to earlier "
        "ones",
        f"driver: {n['driver_ms']:.2f} ms of a core for a result; at most {n['megabytes']:.0f} MB "
        f"of memory, {n['megabytes_before']:.0f} MB of it before the first candidate",
        queue_text(n["queue"]),
    ]
    if n["best_10"] is not None:
        lines.append(f"mean score of the best 10: {n['best_10']:.4f}")
    return "\n".join(lines)


def _megabytes():
    return peak_memory(torch.device("cpu")) / 2**20


def _score(graph, anchor):
    names = [*INITIAL, *(op for op, *_ in graph.canonical().nodes)]
    pairs = [
        (names[k], names[i])
        for k, (_, *inputs) in enumerate(graph.canonical().nodes, len(INITIAL))
        for i in inputs
    ]
    total = sum(_weight(*pair) + 0.4 * _weight(anchor, *pair) for pair in pairs)
    # From that of guessing to 0.9, a few pairs with high weights in between.
    return _GUESSING + 0.8 / (1 + math.exp(-total))


def _weight(*names):
    return hashlib.blake2b("/".join(names).encode(), digest_size=1).digest()[0] / 127.5 - 1
