"""The file of a search: what is written, counted once, refused."""

import os
import resource
import signal
import sqlite3

import pytest

from evonorm_plugins.errors import InputError, NoSpaceError, RunError, StoreError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.store import Candidate, Store

TANH = Graph.of(("tanh", "x"))
DEAD = Graph([("exp", 0), ("tanh", 0)])  # equal to TANH but for a node that nothing uses
RELU = Graph.of(("max", "x", "zero"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder/search.sqlite"


@pytest.fixture
def store(path):
    with Store.create(path, {"space": "B"}) as store:
        yield store


def fill(store):
    """Candidate 0 passed, 1 rejected, 2 equal to 0, 3 pending."""
    for number, graph in enumerate((TANH, RELU, DEAD, Graph.of(("exp", "x")))):
        store.propose(Candidate(number, graph, seed=7, parent=0 if number else None))
    store.handed_out(1)
    store.record(1, "rejected", filter="quality", details={"quality": {"a": 0.1}}, cost=2.5)
    store.record(0, "passed", scores={"a": 0.5, "b": 0.7}, seconds={"training": 60.0}, cost=60.0)
    store.record(2, "passed", scores={"a": 0.5, "b": 0.7}, same_as=0)


def test_what_is_written_is_read_by_another(store, path):
    fill(store)
    with Store(path) as other:
        assert other.config == {"space": "B"}
        first = other[0]
        assert (first.graph, first.status, first.scores) == (TANH, "passed", {"a": 0.5, "b": 0.7})
        assert first.score == pytest.approx(0.6)
        assert (first.parent, first.seed, first.finished) == (None, 7, 1)
        assert first.seconds == {"training": 60.0}
        assert first.cost == 60.0
        rejected = other[1]
        assert (rejected.status, rejected.filter, rejected.attempts) == ("rejected", "quality", 1)
        assert (rejected.details, rejected.score) == ({"quality": {"a": 0.1}}, None)
        assert [c.number for c in other.finished()] == [1, 0, 2]
        assert [c.number for c in other.pending()] == [3]
        assert [c.number for c in other.recent(5)] == [0, 2]
        assert [c.number for c in other.recent(1)] == [2]
        assert other.counts() == {"passed": 2, "quality": 1}
        assert (len(other), other.next_number()) == (3, 4)


def test_equal_graphs_are_found_and_ranked_once(store):
    fill(store)
    assert store.find(DEAD.digest()).number == 0
    assert store.find(Graph.of(("log", "x")).digest()) is None
    assert [c.number for c in store.best(10)] == [0]


def test_the_best_are_first(store):
    for number, score in enumerate([0.2, 0.9, 0.5]):
        store.propose(Candidate(number, random_of(number)))
        store.record(number, "passed", scores={"a": score, "b": score})
    assert [c.number for c in store.best(2)] == [1, 2]


def random_of(number):
    return Graph([("exp", 0)] * (number + 1) + [("tanh", 3 + number + 1)])


def test_a_result_counts_once(store):
    fill(store)
    assert store.record(0, "rejected", filter="quality") is None
    assert store[0].status == "passed"
    assert len(store) == 3


def test_an_unknown_number(store, path):
    with pytest.raises(KeyError, match=f"no candidate 12 in {path}"):
        store[12]


def test_one_writer_at_a_time(store, path):
    with pytest.raises(RunError, match=r"is being written by another process"):
        Store(path, write=True)
    store.close()
    Store(path, write=True).close()


def killed_after(work):
    """Do ``work`` in a process that is killed with what it returned still open."""
    pid = os.fork()
    if pid == 0:
        try:
            kept = work()  # noqa: F841
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_writer_that_was_killed_leaves_no_lock(path):
    killed_after(lambda: Store.create(path, {}))
    with Store(path, write=True) as store:
        assert len(store) == 0


def test_a_search_is_not_overwritten(store, path):
    with pytest.raises(StoreError, match=f"{path} is there already"):
        Store.create(path, {})


def test_no_file(tmp_path):
    with pytest.raises(StoreError, match=r"no search in .*none\.sqlite"):
        Store(tmp_path / "none.sqlite")


def test_not_a_database(tmp_path):
    file = tmp_path / "text.sqlite"
    file.write_text("a text " * 1000)
    with pytest.raises(StoreError, match=rf"{file} is no search's file or is damaged: file is not"):
        Store(file)


def test_a_database_of_something_else(tmp_path):
    file = tmp_path / "other.sqlite"
    sqlite3.connect(file).execute("CREATE TABLE t (a)").connection.close()
    with pytest.raises(StoreError, match=rf"{file} is no search's file"):
        Store(file)


def test_another_version(store, path):
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE about SET value = '9' WHERE key = 'version'")
    with pytest.raises(StoreError, match=r"version '9', not .* version 1"):
        Store(path)


@pytest.fixture
def first_version(store, path):
    """A file as version 1 wrote it."""
    fill(store)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP INDEX by_mark")
        for column in ("fingerprint", "mark", "redrawn"):
            db.execute(f"ALTER TABLE candidates DROP COLUMN {column}")
        db.execute("UPDATE about SET value = '1' WHERE key = 'version'")
    return path


def test_version_1_is_read_as_it_is(first_version):
    before = first_version.read_bytes()
    with Store(first_version) as store:
        found = store.finished()
    assert [(c.number, c.redrawn, c.fingerprint) for c in found] == [
        (n, {}, None) for n in (1, 0, 2)
    ]
    assert first_version.read_bytes() == before


def test_version_1_is_gone_on_with_as_version_2(first_version):
    with Store(first_version) as store:
        before = store.finished()
    with Store(first_version, write=True) as store:
        assert store.finished() == before
        new = Candidate(4, Graph.of(("log", "x")), fingerprint=[0.5, 2.0], redrawn={"structure": 3})
        store.propose(new)
    with Store(first_version) as store:
        assert store.finished() == before
        assert (store[4].fingerprint, store[4].redrawn) == ([0.5, 2.0], {"structure": 3})


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ([[0.5, 2.0]], 0),
        ([[9.0, 9.0], [0.509, 1.991]], 0),
        ([[0.491, 2.009]], 0),  # on the other side
        ([[0.512, 2.0]], 1),
        ([[0.515, 2.0], [0.5, 2.0]], 0),  # the first one proposed
        ([[0.5, 2.02]], None),
        ([[0.45, 2.0]], None),
    ],
)
def test_a_fingerprint_near_one_that_is_there(store, given, number):
    store.propose(Candidate(0, TANH, fingerprint=[0.5, 2.0]))
    store.propose(Candidate(1, RELU, fingerprint=[0.52, 2.0]))
    store.propose(Candidate(2, Graph.of(("exp", "x"))))
    found = store.find_near(given, tolerance=0.01)
    assert (found and found.number) == number


def test_cut_off(store, path):
    fill(store)
    store.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=rf"{path} is no search's file or is damaged"):
        list(Store(path).finished())


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ('[["tanh", 9]]', "node 4: input 9 of tanh does not come before it"),
        ('[["exp", 0]]', "its digest is"),
        ("[[", "Expecting value"),
    ],
)
def test_a_damaged_graph_is_named(store, path, nodes, reason):
    fill(store)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE candidates SET nodes = ? WHERE number = 0", (nodes,))
    with (
        Store(path) as other,
        pytest.raises(StoreError, match="is damaged: candidate 0: ") as error,
    ):
        other.recent(10)
    assert reason in str(error.value)


def fill_with(store, graph):
    for number in range(4, 500):
        store.propose(Candidate(number, graph))


def test_a_full_disk_is_not_called_damage(store, path):
    fill(store)
    store._db.execute("PRAGMA max_page_count = 1")  # what there is stays, nothing can be added
    many = Graph([("exp", 0)] * 99 + [("tanh", 0)])
    with pytest.raises(NoSpaceError, match=f"{path} cannot be used: database or disk is full"):
        fill_with(store, many)


def test_reading_leaves_no_files(store, path):
    fill(store)
    store.close()
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with Store(path) as other:
        assert len(other.finished()) == 3
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_reader_sees_what_a_writer_that_was_killed_left_in_its_log(path):
    def write():
        store = Store.create(path, {})
        store.propose(Candidate(0, TANH))
        store.record(0, "passed", scores={"a": 0.5})
        return store

    killed_after(write)
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0
    with Store(path) as store:
        assert store[0].scores == {"a": 0.5}


def test_a_file_that_is_no_store_is_not_touched(tmp_path):
    file = tmp_path / "data.zip"
    file.write_text("a text " * 1000)
    with pytest.raises(StoreError):
        Store(file, write=True)
    assert [p.name for p in tmp_path.iterdir()] == ["data.zip"]


def test_folders_and_files_in_the_way(tmp_path):
    with pytest.raises(StoreError, match=f"{tmp_path} is a folder, not the file of a search"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        Store.create(tmp_path / "file/search.sqlite", {})


def test_numbers_that_no_candidate_can_have(store):
    fill(store)
    for number in (-1, 10**30):
        with pytest.raises(KeyError, match=f"no candidate {number} "):
            store[number]
    assert len(store.best(10**30)) == 1


def test_a_store_that_cannot_be_written_is_not_begun(tmp_path):
    """A limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot be used"):
            Store.create(tmp_path / "search.sqlite", {"data": "x" * 300_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
