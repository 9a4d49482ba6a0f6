"""The loop of a search with workers that need no processes: order, failures, going on."""

from types import SimpleNamespace

import pytest

from evonorm_plugins.errors import RunError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.driver import Driver, queue_text
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.halving import Bars
from evonorm_plugins.search.store import Store

GRAPHS = [
    Graph.of(e) for e in (("tanh", "x"), ("exp", "x"), ("neg", "x"), ("square", "x"), ("log", "x"))
]


class Scripted(Evolution):
    """Proposes what it is told to: ``plan[number][attempt]``."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def propose(self, number, attempt=0):
        chosen = self.plan[number % len(self.plan)]
        return (chosen[attempt] if isinstance(chosen, list) else chosen), None


class Inline:
    """Workers that evaluate at once; ``answer(number, graph)`` is an evaluation or an error."""

    def __init__(self, slots, answer=None, order=lambda waiting: waiting):
        self.slots, self.waiting, self.seen, self.options = slots, [], [], []
        self.answer, self.order = answer or (lambda number, graph: passed(0.5)), order

    @property
    def free(self):
        return self.slots - len(self.waiting)

    def submit(self, number, graph, **options):
        self.seen.append(number)
        self.options.append(options)
        self.waiting.append((number, graph))

    def wait(self, seconds):
        number, graph = self.order(self.waiting)[0]
        self.waiting.remove((number, graph))
        found = self.answer(number, graph)
        result = {
            "evaluation": None,
            "error": "",
            "lost": False,
            "ran": 2.0,
            "waited": 0.5,
            "travelled": 0.0,
        }
        return [SimpleNamespace(number=number, **{**result, **found})]


def passed(*scores):
    return {"evaluation": evaluation(None, {str(k): s for k, s in enumerate(scores)})}


def rejected(name):
    return {"evaluation": evaluation(name, {})}


def evaluation(name, scores):
    return SimpleNamespace(filter=name, scores=scores, details={}, seconds={"training": 2.0})


LOST = {"error": "ActorDiedError: it died", "lost": True}
RAISED = {"error": "ValueError: no"}


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "search.sqlite", {}) as store:
        yield store


def driver(store, workers, plan=GRAPHS, candidates=None, **options):
    candidates = len(plan) if candidates is None else candidates
    return Driver(store, workers, Scripted(plan), candidates=candidates, **options)


def test_every_candidate_gets_one_result(store):
    workers = Inline(2, lambda number, graph: rejected("quality") if number == 1 else passed(0.25))
    search = driver(store, workers)
    search.run()
    assert sorted(workers.seen) == [0, 1, 2, 3, 4]
    assert search.counts == store.counts() == {"passed": 4, "quality": 1}
    assert [c.graph for c in store.finished()] == [GRAPHS[k] for k in (0, 1, 2, 3, 4)]
    assert store[3].cost == 2.0
    assert store[3].scores == {"0": 0.25}
    # Only those that passed can be parents.
    assert [number for number, *_ in search.evolution.window] == [0, 2, 3, 4]


def test_a_slow_candidate_holds_up_no_other(store):
    slowest_last = lambda waiting: sorted(waiting, key=lambda item: item[0] == 0)  # noqa: E731
    workers = Inline(2, order=slowest_last)
    driver(store, workers).run()
    assert [c.number for c in store.finished()] == [1, 2, 3, 4, 0]


def test_proposals_know_the_results_before_them(store):
    workers = Inline(1)
    known = []

    class Watched(Scripted):
        def propose(self, number, attempt=0):
            known.append(len(self.window))
            return super().propose(number, attempt)

    Driver(store, workers, Watched(GRAPHS), candidates=5).run()
    assert known == [0, 1, 2, 3, 4]


def test_an_equal_graph_is_not_tried_again(store):
    again = Graph([("exp", 0), ("tanh", 0)])
    workers = Inline(1, lambda number, graph: passed(0.75))
    search = driver(store, workers, [GRAPHS[0], again, GRAPHS[1]])
    search.run()
    assert workers.seen == [0, 2]
    assert (store[1].same_as, store[1].scores, store[1].cost) == (0, {"0": 0.75}, 0)
    assert search.repeated == 1
    assert search.done == 3
    assert [number for number, *_ in search.evolution.window] == [0, 1, 2]


def test_an_equal_graph_that_is_being_tried_is_proposed_anew(store):
    workers = Inline(2)
    search = driver(store, workers, [GRAPHS[0], [GRAPHS[0], GRAPHS[0], GRAPHS[1]]])
    search.run()
    assert [store[k].graph for k in (0, 1)] == GRAPHS[:2]
    assert search.repeated == 0


SAME = [Graph([("exp", 0), ("tanh", 0)]), Graph.of(("neg", ("tanh", ("neg", ("neg", "x")))))]


def test_a_proposal_that_is_known_is_drawn_anew(store):
    workers = Inline(1)
    search = driver(store, workers, [GRAPHS[0], [SAME[0], SAME[0], GRAPHS[1]]], redraws=2)
    search.run()
    assert [c.graph for c in store.finished()] == GRAPHS[:2]
    assert (store[0].redrawn, store[1].redrawn) == ({}, {"structure": 2})
    assert search.repeated == 0


def test_redraws_are_bounded(store):
    """The last one drawn counts, with the result that is known."""
    search = driver(store, Inline(1), [GRAPHS[0], [SAME[0]] * 3 + [GRAPHS[1]]], redraws=2)
    search.run()
    assert (store[1].graph, store[1].same_as, store[1].redrawn) == (SAME[0], 0, {"structure": 2})
    assert search.repeated == 1


def test_layers_that_do_the_same_are_equal_where_that_is_asked_for(tmp_path):
    """tanh(-x) is -tanh(x); candidates that are being tried count, too, and those of before."""
    plan, path = [GRAPHS[0], SAME[1], GRAPHS[1]], tmp_path / "function.sqlite"
    with Store.create(path, {}) as store:
        driver(store, Inline(1), plan, same="function").run()
        assert (store[1].same_as, store[1].fingerprint) == (0, None)
        assert len(store[0].fingerprint) == 16
    with Store(path, write=True) as store:
        plan[3:] = [
            [Graph.of(("tanh", ("neg", "x"))), GRAPHS[1], GRAPHS[2]],
            [Graph.of(("exp", ("neg", "x"))), GRAPHS[3]],
        ]
        driver(store, Inline(2), plan, same="function", redraws=5).run()
        assert [store[k].graph for k in (3, 4)] == [GRAPHS[2], GRAPHS[3]]
        assert store[3].redrawn == {"function": 1, "structure": 1}
        assert store[4].redrawn == {"function": 1}
        plan[5:] = [SAME[1]]  # known by the digest of a copy
        driver(store, Inline(1), plan, same="function").run()
        assert store[5].same_as == 0
    with Store.create(tmp_path / "structure.sqlite", {}) as store:
        driver(store, Inline(1), plan[:3]).run()
        assert (store[1].same_as, store[1].fingerprint) == (None, None)


def test_candidates_are_compared_with_those_before_them(tmp_path):
    """The same with a stop in between; what is equal to another does not count twice."""

    def answer(number, graph):
        found = evaluation("rungs", {})
        found.details = {"rungs": {"25": {"a": number / 10}}}
        return {"evaluation": found}

    plan = [*GRAPHS[:2], SAME[0], *GRAPHS[2:]]

    def given(name, stops):
        seen = []
        with Store.create(tmp_path / name, {}) as store:
            for until in (*stops, len(plan)):
                workers = Inline(1, answer)
                search = driver(store, workers, plan, until, bars=Bars(0.5, 0.5, least=2))
                search.run()
                seen += [options["bars"] for options in workers.options]
        return seen

    bars = given("whole", [])
    # Of 0 and 0.1, then of 0.3 and 0.4 as well.
    assert bars == [{}, {"25": {}}, *({"25": {"a": bar}} for bar in (0.1, 0.1, 0.3))]
    assert given("stopped", [1, 4]) == bars


def test_a_lost_worker_costs_no_candidate(store):
    deaths = {2: 2}

    def answer(number, graph):
        if deaths.get(number, 0):
            deaths[number] -= 1
            return LOST
        return passed(0.5)

    workers = Inline(2, answer)
    driver(store, workers).run()
    assert store.counts() == {"passed": 5}
    assert workers.seen.count(2) == store[2].attempts == 3


def test_a_candidate_that_kills_its_workers_is_given_up(store):
    workers = Inline(2, lambda number, graph: LOST if number == 2 else passed(0.5))
    search = driver(store, workers)
    search.run()
    assert store.counts() == {"passed": 4, "failed": 1}
    assert store[2].error == "ActorDiedError: it died"
    assert workers.seen.count(2) == 3


def test_what_raises_is_recorded(store):
    driver(store, Inline(1, lambda number, graph: RAISED if number == 0 else passed(0.5))).run()
    assert (store[0].status, store[0].error) == ("failed", "ValueError: no")


def test_a_fault_of_all_ends_the_search(store):
    plan = [Graph([("exp", 0)] + [("exp", 4 + i) for i in range(k)]) for k in range(20)]
    search = driver(store, Inline(1, lambda number, graph: RAISED), plan)
    with pytest.raises(RunError, match=r"10 candidates in a row .* candidate 9: ValueError: no"):
        search.run()
    assert store.counts() == {"failed": 10}


class Killed(Exception):
    pass


def test_a_killed_driver_loses_and_repeats_nothing(tmp_path):
    path = tmp_path / "search.sqlite"

    def dies_at_third(number, graph):
        if number == 2:
            raise Killed
        return passed(0.5)

    with Store.create(path, {}) as store, pytest.raises(Killed):
        driver(store, Inline(2, dies_at_third)).run()
    with Store(path, write=True) as store:
        assert [c.number for c in store.finished()] == [0, 1]
        assert [c.number for c in store.pending()] == [2, 3]
        workers = Inline(2)
        search = driver(store, workers)
        assert [number for number, *_ in search.evolution.window] == [0, 1]
        search.run()
        assert workers.seen == [2, 3, 4]
        assert [c.number for c in store.finished()] == [0, 1, 2, 3, 4]
        assert [c.graph for c in store.finished()] == GRAPHS


def test_the_proposals_after_a_stop_are_those_without_one(tmp_path):
    def graphs(name, stops):
        with Store.create(tmp_path / name, {}) as store:
            for until in (*stops, 40):
                workers = Inline(1, lambda number, graph: passed(number / 40))
                Driver(store, workers, Evolution(seed=5), candidates=until).run()
            return [c.graph for c in store.finished()]

    assert graphs("whole", []) == graphs("stopped", [7, 8, 25])


def test_more_candidates_than_before_can_be_asked_for(store):
    driver(store, Inline(1), candidates=2).run()
    assert len(store) == 2
    driver(store, Inline(1), candidates=5).run()
    assert len(store) == 5
    workers = Inline(1)
    driver(store, workers, candidates=3).run()
    assert workers.seen == []


def test_the_queue_is_reported(store):
    search = driver(store, Inline(1))
    assert search.queue() is None
    assert queue_text(None) == "no results"
    search.run()
    queue = search.queue()
    assert queue["waited_ms"] == [500, 500, 500]
    assert queue["at_once"] == [1, 1]
    assert queue["workers_idle"] == pytest.approx(0.2)
    text = queue_text(queue)
    assert text.startswith("results waited 500 ms for the driver (95%: 500 ms")
    assert text.endswith("at most 1; workers waited 20.00% of their time")
