"""Workers that evaluate candidates: Ray actors here or on a cluster, any of which may die."""

import time
from dataclasses import dataclass

from evonorm_plugins.layers.graph.graph import Graph


@dataclass
class Result:
    """What came back for one candidate.

    ``evaluation`` is None where the worker was lost (``lost``) or raised; ``error`` says why.
    Times in seconds: ``ran``, the evaluation; ``waited``, from its end until it was taken in here;
    ``travelled``, from its submission here until it began.
    """

    number: int
    evaluation: object = None
    error: str = ""
    lost: bool = False
    ran: float = 0.0
    waited: float = 0.0
    travelled: float = 0.0


class Workers:
    """A fixed number of workers; a dead one is replaced as soon as there is room for it.

    Args:
        ray: the module, connected.
        make_evaluator: called once in each process of a worker; gives the function that turns a
            :class:`Graph` into an evaluation. Both are pickled.
        actors: processes.
        slots: candidates that a process evaluates at a time, in threads.
        cpus, gpus: of a process.
    """

    def __init__(self, ray, make_evaluator, *, actors, slots=1, cpus=1, gpus=0):
        self._ray, self._slots = ray, slots
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": slots}
        self._make = ray.put((make_evaluator, cpus))
        self._actor = ray.remote(_Worker)
        self._actors, self._free = [None] * actors, []
        self._starting, self._running = {}, {}  # reference -> place, (number, place, actor, time)
        for place in range(actors):
            self._start(place)

    @property
    def free(self):
        """Candidates that can be submitted now."""
        return len(self._free)

    def check(self, seconds=None):
        """Wait for the first worker to be ready; False if none is after so many seconds.

        Raises:
            RuntimeError: it cannot be made; the message is the reason.
        """
        done, _ = self._ray.wait(list(self._starting), num_returns=1, timeout=seconds)
        try:
            self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(_reason(error)) from error
        return bool(done)

    def submit(self, number, graph, **options):
        """Hand a candidate to a free worker, with options of the evaluation."""
        place = self._free.pop()
        actor = self._actors[place]
        reference = actor.evaluate.remote(graph.nodes, options)
        self._running[reference] = number, place, actor, time.time()

    def wait(self, seconds):
        """The results that are there, after waiting for the first for at most so long."""
        known = [*self._running, *self._starting]
        ready, rest = self._ray.wait(known, num_returns=1, timeout=seconds)
        if ready and rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        results = []
        for reference in ready:
            if reference in self._starting:
                self._started(reference)
            else:
                results.append(self._result(reference))
        return results

    def close(self):
        """Stop all workers, whatever they do."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _start(self, place):
        actor = self._actor.options(**self._options).remote(self._make)
        self._actors[place] = actor
        # Nothing is handed to it before this answers: it may have to wait for room.
        self._starting[actor.ready.remote()] = place

    def _started(self, reference):
        place = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError:
            time.sleep(1)  # what fails at once must not keep the driver busy
            self._start(place)
        else:
            self._free += [place] * self._slots

    def _result(self, reference):
        number, place, actor, submitted = self._running.pop(reference)
        try:
            evaluation, began, ended = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._release(place, actor)
            return Result(number, error=_reason(error))
        except self._ray.exceptions.RayError as error:
            self._lost(place, actor)
            return Result(number, error=_reason(error), lost=True)
        self._release(place, actor)
        # Clocks of two machines may differ.
        waited, travelled = max(0.0, time.time() - ended), max(0.0, began - submitted)
        times = {"ran": ended - began, "waited": waited, "travelled": travelled}
        return Result(number, evaluation, **times)

    def _release(self, place, actor):
        if self._actors[place] is actor:
            self._free.append(place)

    def _lost(self, place, actor):
        # Its other slots report their candidates one by one; the place is filled once.
        if self._actors[place] is actor:
            self._free = [p for p in self._free if p != place]
            self._start(place)


class _Worker:
    def __init__(self, made):
        make_evaluator, cpus = made
        self._evaluate = make_evaluator(cpus)

    def ready(self):
        return True

    def evaluate(self, nodes, options):
        began = time.time()
        return self._evaluate(Graph.unchecked(nodes), **options), began, time.time()


def _reason(error):
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
