"""What one candidate is worth, found out in one process: the filters, then whole trainings."""

import contextlib
import dataclasses
import statistics
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
    or another of :mod:`evonorm_plugins.search.filters`; ``"top"``, not among the best so far that
    passed the quality filter; or ``"training"``: a loss or gradient of a whole training was not
    finite.

    ``scores`` is ``{anchor: validation accuracy, 0 to 1}`` of whole trainings, empty for what was
    refused.

    ``details`` holds, as far as it was found out: ``"quality"``, ``{anchor: validation accuracy
    after task.quality_steps}``; ``"gradient_norm"``, the largest norm that the stability test
    reached (infinite where it overflowed), after ``"ascent_steps"`` steps; ``"not_finite"``,
    ``{anchor: number of the step that was not}``; ``"propagation"`` and ``"rungs"``, what these
    filters found; ``"top"``, the mean of ``"quality"`` of what came to that filter; ``"refused"``,
    all filters that refuse it, where they were all asked.

    ``seconds`` and ``cpu_seconds`` are ``{stage: seconds}``, elapsed and of this process's threads,
    by the names of the filters, and for ``"training"``: the steps after those of ``"quality"``, and
    the validation.
    """

    filter: str | None = None
    scores: dict = dataclasses.field(default_factory=dict)
    details: dict = dataclasses.field(default_factory=dict)
    seconds: dict = dataclasses.field(default_factory=dict)
    cpu_seconds: dict = dataclasses.field(default_factory=dict)


def evaluate(graph, task, *, bars=None, ask_all=False, progress=None):
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
        bars: of the filters ``"rungs"`` and ``"top"``, see
            :class:`evonorm_plugins.search.halving.Bars`; None refuses nothing by them.
        ask_all: go on after a refusal, but for that of the trial: every filter is asked, and the
            candidate trained. What refused it first is ``filter``.
        progress: called with the name of what begins: a filter, or ``"training ANCHOR"``.

    Raises:
        ConfigError, DataError: a bad task; never for what a candidate does.
    """
    return _Run(graph.canonical(), task, bars or {}, ask_all, progress).evaluate()


class _Run:
    def __init__(self, graph, task, bars, ask_all, progress):
        self.graph, self.task = graph, task
        self.bars, self.ask_all = bars, ask_all
        self.progress = progress or (lambda stage: None)
        self.trainings, self.found = {}, Evaluation()
        # What is wrong with them is said now, and reading images is no candidate's time.
        task_data(task)
        Ranks(task.device)

    def evaluate(self):
        refused = []
        for name in self.task.filters:
            self.progress(name)
            with self._timed(name):
                reason = getattr(self, name)()
            if reason:
                refused.append(reason)
                if name == "trial" or not self.ask_all:
                    break
        if self.ask_all:
            self.found.details["refused"] = refused
        self.found.filter = refused[0] if refused else None
        if refused and (name == "trial" or not self.ask_all):
            return self._finished()
        with self._timed("training"):
            self.train()
        return self._finished()

    def trial(self):
        return filters.trial(self.graph)

    def propagation(self):
        passed, self.found.details["propagation"] = filters.propagation(self.graph, self.task)
        return None if passed else "propagation"

    def rungs(self):
        passed, found = filters.rungs(self._trainings(), self.task, self.bars)
        self.found.details["rungs"] = found
        return None if passed else "rungs"

    def quality(self):
        passed, self.found.details["quality"] = filters.quality(self._trainings(), self.task)
        return None if passed else "quality"

    def top(self):
        mean = statistics.fmean(self.found.details["quality"].values())
        self.found.details["top"] = mean
        return None if mean >= self.bars.get("top", 0) else "top"

    def ascent(self):
        return self._climbed(filters.ascent, "ascent")

    def stability(self):
        return self._climbed(filters.stability, "stability")

    def _climbed(self, climb, name):
        passed, norms = climb(self.graph, self.task)
        self.found.details |= {"gradient_norm": max(norms), "ascent_steps": len(norms) - 1}
        return None if passed else name

    def _trainings(self):
        return ((anchor, self._training(anchor)) for anchor in self.task.anchors)

    def train(self):
        scores = {}
        for anchor in self.task.anchors:
            self.progress(f"training {anchor}")
            training = self._training(anchor)
            if not training.go_on(self.task.training_steps) and self.task.filters:
                self.found.filter = self.found.filter or "training"
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
