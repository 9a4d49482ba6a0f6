"""Candidates whose scores and costs are known: what a search's driver is tried with. No training.

The score of a graph is a sum over the pairs of operations in it, each with a weight that its name
decides. So a child shares much of its parent's score, as layers do, and the best are rare.
"""

import hashlib
import math
import random
import tempfile
import time
from pathlib import Path

import torch

from evonorm_plugins.layers.graph.operations import INITIAL
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
    """A whole search with Ray, store and evolution, whose candidates only wait; as text.

    Args:
        workers: candidates that are evaluated at a time, in ``processes`` processes of this
            machine, so that many fit.
        candidates: results to end with.
        seconds: see :func:`simulate`.
        path: of the store; None keeps none.
        on_hang: see :func:`evonorm_plugins.training.cluster.connect`.

    Raises:
        FileExistsError: there is a store.
        RayError, RunError, InterruptedRunError: see :func:`evonorm_plugins.search.run.run_search`.
    """
    processes = min(processes, workers)
    about = {"simulated": {"workers": workers, "candidates": candidates, "seconds": seconds}}
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder, "search.sqlite")
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
                return _simulation_report(driver, processes * slots, wall, used, before)
        finally:
            ray.shutdown()


def _simulation_report(driver, workers, wall, used, before):
    best = driver.store.best(10)
    lines = [
        f"{driver.done} results in {wall:.1f} s with {workers} workers: "
        f"{driver.done / wall:.0f} a second, {driver.repeated} of them equal to earlier ones",
        f"driver: {used / driver.done * 1e3:.2f} ms of a core for a result; at most "
        f"{_megabytes():.0f} MB of memory, {before:.0f} MB of it before the first candidate",
        driver.queue_report(),
    ]
    if best:
        lines.append(f"mean score of the best 10: {sum(c.score for c in best) / len(best):.4f}")
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
