"""What one candidate is worth, found out in one process: the filters, then whole trainings."""

import contextlib
import dataclasses
import time

from evonorm_plugins.search import filters
from evonorm_plugins.search.data import task_data
from evonorm_plugins.search.trainer import Training
from evonorm_plugins.training.ranks import Ranks


@dataclasses.dataclass
class Evaluation:
    """What :func:`evaluate` found, in plain values.

    ``filter`` is None for a candidate that passed, or what refused it: ``"not finite"``,
    ``"constant"`` or ``"flat"`` (see :func:`evonorm_plugins.search.filters.trial`), ``"quality"``
    or ``"stability"`` (see :mod:`evonorm_plugins.search.filters`), or ``"training"``: a loss or
    gradient of a whole training was not finite.

    ``scores`` is ``{anchor: validation accuracy, 0 to 1}`` of whole trainings, empty for what was
    refused.

    ``details`` holds, as far as it was found out: ``"quality"``, ``{anchor: validation accuracy
    after task.quality_steps}``; ``"gradient_norm"``, the largest norm that the stability test
    reached (infinite where it overflowed), after ``"ascent_steps"`` steps; ``"not_finite"``,
    ``{anchor: number of the step that was not}``.

    ``seconds`` and ``cpu_seconds`` are ``{stage: seconds}``, elapsed and of this process's threads,
    for ``"trial"``, ``"quality"``, ``"stability"`` and ``"training"``: the steps after those of
    ``"quality"``, and the validation.
    """

    filter: str | None = None
    scores: dict = dataclasses.field(default_factory=dict)
    details: dict = dataclasses.field(default_factory=dict)
    seconds: dict = dataclasses.field(default_factory=dict)
    cpu_seconds: dict = dataclasses.field(default_factory=dict)


def evaluate(graph, task, *, progress=None):
    """Put one candidate through the filters, in the order of ``task.filters``, and train it.

    The first filter that refuses it ends the evaluation. Trainings go on from where the quality
    filter left them. Graphs with the same digest give the same result, bit for bit where torch has
    one thread of a CPU.

    ``filters=[]`` is no rejection: there a training that is not finite counts as guessing, with an
    accuracy of 1 / classes, and the evaluation passes, as the random layers of the paper's Figure 2
    do. With any filter such a candidate is refused by ``"training"``.

    Args:
        graph: :class:`evonorm_plugins.layers.graph.graph.Graph`.
        task: a checked :class:`evonorm_plugins.search.config.Task`.
        progress: called with the name of what begins: a filter, or ``"training ANCHOR"``.

    Raises:
        ConfigError, DataError: a bad task; never for what a candidate does.
    """
    return _Run(graph.canonical(), task, progress).evaluate()


class _Run:
    def __init__(self, graph, task, progress):
        self.graph, self.task = graph, task
        self.progress = progress or (lambda stage: None)
        self.trainings, self.found = {}, Evaluation()
        # What is wrong with them is said now, and reading images is no candidate's time.
        task_data(task)
        Ranks(task.device)

    def evaluate(self):
        stages = {"trial": self.trial, "stability": self.stability, "quality": self.quality}
        for name in self.task.filters:
            self.progress(name)
            with self._timed(name):
                self.found.filter = stages[name]()
            if self.found.filter:
                return self._finished()
        with self._timed("training"):
            self.train()
        return self._finished()

    def trial(self):
        return filters.trial(self.graph)

    def quality(self):
        trainings = ((anchor, self._training(anchor)) for anchor in self.task.anchors)
        passed, self.found.details["quality"] = filters.quality(trainings, self.task)
        return None if passed else "quality"

    def stability(self):
        passed, norms = filters.stability(self.graph, self.task)
        self.found.details |= {"gradient_norm": max(norms), "ascent_steps": len(norms) - 1}
        return None if passed else "stability"

    def train(self):
        scores = {}
        for anchor in self.task.anchors:
            self.progress(f"training {anchor}")
            training = self._training(anchor)
            if not training.go_on(self.task.training_steps) and self.task.filters:
                self.found.filter = "training"
                return
            scores[anchor] = training.accuracy()
        self.found.scores = scores

    def _training(self, anchor):
        if anchor not in self.trainings:
            self.trainings[anchor] = Training(self.graph, self.task, anchor)
        return self.trainings[anchor]

    def _finished(self):
        failed = {k: t.failed_at for k, t in self.trainings.items() if t.failed_at is not None}
        if failed:
            self.found.details["not_finite"] = failed
        return self.found

    @contextlib.contextmanager
    def _timed(self, stage):
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.found.seconds[stage] = time.perf_counter() - start
        self.found.cpu_seconds[stage] = time.process_time() - cpu
