"""Candidates whose scores and costs are known: what a search's driver is tried with. No training.

The score of a graph is a sum over the pairs of operations in it, each with a weight that its name
decides. So a child shares much of its parent's score, as layers do, and the best are rare.
"""

import hashlib
import math
import random
import time

from evonorm_plugins.search.evaluate import Evaluation
from evonorm_plugins.search.operations import INITIAL

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
