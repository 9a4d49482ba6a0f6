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
from evonorm_plugins.search.run import drive
from evonorm_plugins.search.store import Store
from evonorm_plugins.search.workers import Workers
from evonorm_plugins.training.cluster import connect
from evonorm_plugins.training.memory import peak_memory

ANCHORS = ("first", "second", "third")
# Share of the full cost that the check of quality takes: 100 of 2,000 steps.
_QUALITY = 0.05
_GUESSING = 0.1


def simulate(graph, seconds):
    """The evaluation that a graph is given, without waiting.

    Args:
        seconds: mean cost of a candidate that passes; the costs are log-normal.

    Returns:
        :class:`Evaluation`: "constant" by structure, "quality" below 0.35 on any anchor.
    """
    if not graph.depends_on_x():
        return Evaluation("constant", seconds={"trial": 0.01})
    cost = random.Random(graph.digest()).lognormvariate(-0.125, 0.5) * seconds
    scores = {anchor: _score(graph, anchor) for anchor in ANCHORS}
    times = {"trial": 0.01, "quality": _QUALITY * cost}
    if min(scores.values()) < 0.35:
        return Evaluation("quality", details={"quality": scores}, seconds=times)
    return Evaluation(None, scores, seconds={**times, "training": (1 - _QUALITY) * cost})


class Simulated:
    """Evaluator that takes as long as the evaluation says it would.

    Args:
        seconds: see :func:`simulate`.
    """

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, cpus):
        return self._evaluate

    def _evaluate(self, graph):
        evaluation = simulate(graph, self.seconds)
        time.sleep(sum(evaluation.seconds.values()))
        return evaluation


def run_simulation(
    workers, candidates, seconds, *, processes=10, random_share=0.5, path=None, on_hang=None
):
    """A whole search with Ray, store and evolution, whose candidates only wait.

    Args:
        workers: candidates that are evaluated at a time, in ``processes`` processes of this
            machine, so that many fit.
        candidates: results to end with.
        seconds: see :func:`simulate`.
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
                evolution = Evolution(random_share=random_share)
                pool.check()
                wall, used, before = time.perf_counter(), time.process_time(), _megabytes()
                driver = drive(store, pool, evolution, candidates=candidates)
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
