"""The loop of a search: proposes candidates, hands them out, records what comes back.

There is no barrier: whenever a worker is free it gets a candidate, made from what is known then.
The store has every candidate before a worker has it, so that a search goes on wherever it stopped.
"""

import math
import statistics
import time
from collections import Counter, deque

from evonorm_plugins.errors import RunError
from evonorm_plugins.search.fingerprint import TOLERANCE, fingerprints
from evonorm_plugins.search.store import Candidate

# A candidate that so many workers died with is not handed out again.
MAX_ATTEMPTS = 3
# Candidates in a row that could not be evaluated: the fault is not theirs.
MAX_FAILURES = 10
_WAIT_SECONDS = 1.0


class Driver:
    """One search, from its first candidate or from where its store left off.

    A candidate that is equal to one that has a result gets that result, without a worker; one that
    is equal to another that is being evaluated is proposed anew.

    Args:
        store: :class:`Store`, open for writing.
        workers: :class:`Workers`, or what acts like them.
        evolution: :class:`Evolution` without candidates.
        candidates: results to end with, those of earlier runs included; None for no such end.
        hours: from now on; then no more candidates are handed out, and those that workers have
            are waited for. None for no such end.
        seed: of the candidates' training, for the record.
        same: which candidates are equal: "structure", those with the same digest; "function", also
            those that :mod:`evonorm_plugins.search.fingerprint` finds to do the same.
        bars: :class:`evonorm_plugins.search.halving.Bars` without candidates, which evaluations
            are given; None where no filter takes them.
        redraws: proposals that are drawn anew, at most, where one is equal to one with a result.

    ``on_result``, where it is set, is called with each :class:`Candidate` that has a result, and
    this driver.
    """

    def __init__(
        self,
        store,
        workers,
        evolution,
        *,
        candidates=None,
        hours=None,
        seed=0,
        same="structure",
        redraws=0,
        bars=None,
    ):
        self.store, self.workers, self.evolution = store, workers, evolution
        self.candidates, self.seed, self.on_result = candidates, seed, None
        self.by_function, self.redraws, self.bars = same == "function", redraws, bars
        if bars:
            for candidate in store.finished():
                self._compare(candidate)
        self._end = math.inf if hours is None else time.monotonic() + 3600 * hours
        for candidate in store.recent(evolution.window.maxlen):
            evolution.add(candidate.number, candidate.graph, candidate.scores.values())
        # Those that an earlier driver had handed out are handed out again, before new ones.
        self._again = deque(store.pending())
        self._next = store.next_number()
        self._running = {}
        self.done, self.counts = len(store), Counter(store.counts())
        self.repeated, self._failures = 0, 0
        # Of this run: times of workers, see Result, and how many results came at once.
        self.ran, self.travelled, self.waited = 0.0, 0.0, 0.0
        self.waits, self.turns = deque(maxlen=100_000), deque(maxlen=100_000)

    @property
    def running(self):
        """Candidates that workers have now."""
        return len(self._running)

    def run(self):
        """Evaluate candidates until there are as many results as asked for.

        Raises:
            RunError: :data:`MAX_FAILURES` candidates in a row could not be evaluated.
            StoreError: a result cannot be written.
        """
        while True:
            self._hand_out()
            if not self._running and not self._wanted():
                return
            results = self.workers.wait(_WAIT_SECONDS)
            if results:
                self.turns.append(len(results))
            for result in results:
                self._take(result)

    def _wanted(self):
        """Whether one more candidate is to be handed out."""
        if time.monotonic() >= self._end:
            return False
        known = self.done + len(self._running) + len(self._again)
        return bool(self._again) or self.candidates is None or known < self.candidates

    def _hand_out(self):
        while self.workers.free and self._wanted():
            candidate = self._again.popleft() if self._again else self._propose()
            if candidate is None:
                continue
            candidate.attempts = self.store.handed_out(candidate.number)
            self._running[candidate.number] = candidate
            bars = {"bars": self.bars.now()} if self.bars else {}
            self.workers.submit(candidate.number, candidate.graph, **bars)

    def _propose(self):
        """A new candidate for a worker, or None where its result is known already."""
        redrawn = Counter()
        while True:
            graph, parent = self.evolution.propose(self._next, redrawn.total())
            known, how, fingerprint = self._known(graph)
            if known is None or (known.status != "pending" and redrawn.total() >= self.redraws):
                break
            redrawn[how] += 1
        candidate = Candidate(self._next, graph, parent=parent, seed=self.seed)
        candidate.fingerprint, candidate.redrawn = fingerprint, dict(redrawn)
        self.store.propose(candidate)
        self._next += 1
        if known is None:
            return candidate
        self.repeated += 1
        same = {key: getattr(known, key) for key in ("filter", "scores", "details", "error")}
        first = known.number if known.same_as is None else known.same_as
        self._record(candidate, known.status, same_as=first, **same)
        return None

    def _known(self, graph):
        """``(equal candidate or None, how it is equal, fingerprint of a graph that is new)``."""
        found = self.store.find(graph.digest())
        if found is not None or not self.by_function:
            return found, "structure", None
        own = fingerprints(graph)
        found = self.store.find_near(own, TOLERANCE) if own else None
        return found, "function", None if found or not own else own[0]

    def _take(self, result):
        candidate = self._running.pop(result.number)
        if result.evaluation is None:
            self._failed(candidate, result)
            return
        self._failures = 0
        self.waits.append(result.waited)
        self.ran, self.waited = self.ran + result.ran, self.waited + result.waited
        self.travelled += result.travelled
        e = result.evaluation
        status = "passed" if e.filter is None else "rejected"
        values = {"filter": e.filter, "scores": e.scores, "details": e.details}
        values |= {"seconds": e.seconds, "cost": sum(e.seconds.values())}
        self._record(candidate, status, **values)

    def _failed(self, candidate, result):
        if result.lost and candidate.attempts < MAX_ATTEMPTS:
            self._again.append(candidate)
            return
        self._record(candidate, "failed", error=result.error)
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise RunError(
                f"{self._failures} candidates in a row could not be evaluated; the last one, "
                f"candidate {candidate.number}: {result.error}"
            )

    def _record(self, candidate, status, **values):
        place = self.store.record(candidate.number, status, **values)
        if place is None:
            return
        candidate.status, candidate.finished = status, place
        for key, value in values.items():
            setattr(candidate, key, value)
        self._compare(candidate)
        self.done += 1
        self.counts[candidate.filter or status] += 1
        if status == "passed":
            self.evolution.add(candidate.number, candidate.graph, candidate.scores.values())
        if self.on_result:
            self.on_result(candidate, self)

    def _compare(self, candidate):
        if self.bars and candidate.same_as is None:
            self.bars.add(candidate.details)

    def queue(self):
        """How long results waited for the driver in this run, and workers for candidates.

        None without results; else the median, the 95% quantile and the largest of the milliseconds
        that results waited, the mean and the largest of how many came at once, and the share of
        their time that workers waited.
        """
        if not self.waits:
            return None
        waits = sorted(self.waits)
        middle, high, most = (1e3 * waits[int(q * (len(waits) - 1))] for q in (0.5, 0.95, 1))
        idle = self.travelled + self.waited
        return {
            "waited_ms": [middle, high, most],
            "at_once": [statistics.mean(self.turns), max(self.turns)],
            "workers_idle": idle / (self.ran + idle),
        }


def queue_text(queue):
    """What :meth:`Driver.queue` gave, as text."""
    if queue is None:
        return "no results"
    middle, high, most = queue["waited_ms"]
    mean, largest = queue["at_once"]
    return (
        f"results waited {middle:.0f} ms for the driver (95%: {high:.0f} ms, longest "
        f"{most:.0f} ms), {mean:.1f} came at once, at most {largest}; workers waited "
        f"{queue['workers_idle']:.2%} of their time"
    )
