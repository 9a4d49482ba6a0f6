"""Workers on Ray: results, errors, processes that die, a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.evaluate import Evaluation
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.run import drive
from evonorm_plugins.search.simulated import Simulated
from evonorm_plugins.search.store import Store
from evonorm_plugins.search.workers import Workers
from evonorm_plugins.training.cluster import connect

ROOT = Path(__file__).parents[2]
GRAPHS = [Graph([("exp", 0)] + [("exp", 4 + i) for i in range(k)]) for k in range(8)]


@pytest.fixture(scope="module", autouse=True)
def pickled_by_value(ray):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Evaluator:
    """Kills its process the first time it gets graph 2, raises for graph 4."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, cpus):
        if Path(self.folder, "cannot start").exists():
            raise FileNotFoundError("there is no data")
        return self.evaluate

    def evaluate(self, graph):
        length = len(graph.nodes)
        with open(Path(self.folder, "seen"), "a") as f:
            print(length - 1, file=f)
        if length == 3 and not Path(self.folder, "died").exists():
            Path(self.folder, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if length == 5:
            raise ValueError("not this one")
        time.sleep(0.05)
        return Evaluation(scores={"a": length / 10}, seconds={"training": 0.05})


def test_dead_processes_and_errors(ray, tmp_path):
    workers = Workers(ray, Evaluator(tmp_path), actors=2, slots=2, cpus=0.5)
    workers.check()
    todo, results = list(enumerate(GRAPHS)), {}
    deadline = time.monotonic() + 120
    while len(results) < len(GRAPHS):
        assert time.monotonic() < deadline
        while todo and workers.free:
            workers.submit(*todo.pop(0))
        for result in workers.wait(0.5):
            if result.lost:
                todo.append((result.number, GRAPHS[result.number]))
            else:
                results[result.number] = result
    workers.close()
    assert results[4].error == "ValueError: not this one"
    assert {n: r.evaluation.scores["a"] for n, r in results.items() if n != 4} == {
        n: (n + 1) / 10 for n in range(8) if n != 4
    }
    seen = (tmp_path / "seen").read_text().split()
    assert seen.count("2") >= 2
    assert {result.lost for result in results.values()} == {False}


def test_workers_that_cannot_start(ray, tmp_path):
    (tmp_path / "cannot start").touch()
    workers = Workers(ray, Evaluator(tmp_path), actors=1)
    with pytest.raises(RuntimeError, match="FileNotFoundError: there is no data"):
        workers.check()
    workers.close()


def drive_a_search(arguments):
    """A search in a process of its own; ``arguments``: store, "new" or "old", address, number."""
    path, new, address, candidates = arguments
    ray = connect(address, unit="worker", cpus=1)
    with Store.create(path, {}) if new == "new" else Store(path, write=True) as store:
        workers = Workers(ray, Simulated(0.25), actors=2, slots=2, cpus=0)
        drive(store, workers, Evolution(), candidates=int(candidates))


@pytest.fixture
def begin(ray, fork):
    """``begin(path, "new", 40)``: such a search, on the Ray of these tests as its cluster."""

    def begin(path, new, candidates):
        address = ray.get_runtime_context().gcs_address
        return fork(drive_a_search, [path, new, address, candidates])

    return begin


def results_of(path, at_least, process):
    """Wait until a running search has so many results; returns how many."""
    for _ in range(600):
        if path.exists():
            with Store(path) as store:
                if len(store) >= at_least:
                    return len(store)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("no results for a minute")


def test_a_search_whose_driver_is_killed_goes_on(begin, tmp_path):
    path = tmp_path / "search.sqlite"
    process = begin(path, "new", 1000)
    known = results_of(path, 12, process)
    process.kill()
    process.communicate()
    with Store(path) as store:
        before = {c.number: c.finished for c in store.finished()}
        assert len(before) >= known
        pending = [c.number for c in store.pending()]
        assert pending
    candidates = len(before) + 28
    process = begin(path, "old", candidates)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    with Store(path) as store:
        found = store.finished()
    assert [c.finished for c in found] == list(range(candidates))
    assert sorted(c.number for c in found) == list(range(candidates))
    assert {c.number: c.finished for c in found if c.number in before} == before


def test_a_stopped_search_says_how_to_go_on(tmp_path):
    """The command from outside, with a Ray of its own."""
    path = tmp_path / "search.sqlite"
    command = [sys.executable, ROOT / "tools/search.py", "simulate", "--processes", "2"]
    command += ["--workers", "4", "--seconds", "0.2", "--store", path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=ROOT, **pipes)
    results_of(path, 5, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the same command with --resume goes on" in err
    with Store(path) as store:
        assert len(store) >= 5


def test_a_simulation_reports_throughput_memory_and_queue(started_ray, search):
    command = ["simulate", "--workers", "40", "--seconds", "0.1"]
    status, out, err = search(*command, "--processes", "2", "--candidates", "200")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("200 results in ")
    assert " with 40 workers: " in lines[0]
    assert "ms of a core for a result; at most" in lines[1]
    assert lines[2].startswith("results waited ")
    assert lines[3].startswith("mean score of the best 10: 0.")
    status, out, _ = search(*command, "--processes", "1", "--candidates", "20", "--json")
    assert status == 0
    numbers = json.loads(out)
    assert (numbers["results"], numbers["workers"]) == (20, 40)
    assert set(numbers["queue"]) == {"waited_ms", "at_once", "workers_idle"}
