"""Every candidate of a search, in one SQLite file: written after each result, read while it runs.

The file is all that a search needs to go on: candidates that were handed out and have no result are
in it too, and a result is counted once.
"""

import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path

from evonorm_plugins.errors import GraphError, StoreError
from evonorm_plugins.files import replacing
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.search.store_file import SINCE_2, TABLES, explained, lock_file, uri

_LARGEST = 2**63 - 1  # integer that a column holds
_FORMAT = "evonorm_plugins layer search"
_VERSION = 2


@dataclass
class Candidate:
    """One row: a graph and what is known of it. See the comments beside the columns."""

    number: int
    graph: Graph
    parent: int | None = None
    status: str = "pending"
    filter: str | None = None
    scores: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    seconds: dict = field(default_factory=dict)
    cost: float = 0.0
    seed: int | None = None
    same_as: int | None = None
    attempts: int = 0
    error: str | None = None
    finished: int | None = None
    finished_at: float | None = None
    fingerprint: list | None = None
    redrawn: dict = field(default_factory=dict)

    @property
    def score(self):
        """Mean validation accuracy over the anchors, or None."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None

    def export(self, path):
        """Write the layer as a file that every ``NORM`` option takes."""
        about = {"candidate": self.number, "scores": self.scores}
        self.graph.canonical().save(path, about=about)


class Store:
    """The file of a search.

    Args:
        path: of an existing file; :meth:`create` makes one.
        write: to write to it, as one process at a time can.

    Raises:
        StoreError: there is no such file, it is not a search's, or it is damaged.
        RunError: another process writes to it, or it cannot be read or written.
        NoSpaceError: the disk is full, here and in every method that writes.
    """

    def __init__(self, path, *, write=False):
        self.path = Path(path)
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder, not the file of a search")
        if not self.path.is_file():
            raise StoreError(f"there is no search in {self.path}")
        self._lock = None
        with self._errors():
            self._db = sqlite3.connect(uri(self.path, write), uri=True)
            self._db.row_factory = sqlite3.Row
        try:
            self.config = self._read_config()
            if write:
                self._begin_writing()
        except BaseException:
            self._db.close()
            raise

    def _read_config(self):
        with self._errors():
            about = dict(self._db.execute("SELECT key, value FROM about").fetchall())
        self._version = about.get("version")
        if about.get("format") != _FORMAT or self._version not in ("1", str(_VERSION)):
            version = f"{about.get('format')!r} version {self._version!r}"
            raise StoreError(f"{self.path} is {version}, not {_FORMAT!r} version 1 or {_VERSION}")
        with self._errors():
            config = json.loads(about["config"])
        if not isinstance(config, dict):
            raise StoreError(f"{self.path} is damaged: its config is {config!r}")
        return config

    def _begin_writing(self):
        self._lock = lock_file(self.path)
        with self._errors():
            self._db.execute("PRAGMA journal_mode = WAL")
            # A crash of the machine may take the last results, which are then run again.
            self._db.execute("PRAGMA synchronous = NORMAL")
            if self._version == "1":
                version = f"UPDATE about SET value = '{_VERSION}' WHERE key = 'version'"
                self._db.executescript(f"BEGIN; {SINCE_2} {version}; COMMIT")

    @classmethod
    def create(cls, path, config):
        """A new file at ``path``, for a search with a plain dictionary of options.

        Raises:
            StoreError: there is something already.
            InputError, RunError, NoSpaceError: it cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path} is there already: name another file for a new search")
        about = {"format": _FORMAT, "version": str(_VERSION), "config": json.dumps(config)}
        with (
            replacing(path) as partial,
            explained(path),
            contextlib.closing(sqlite3.connect(partial)) as db,
            db,
        ):
            db.executescript(TABLES + SINCE_2)
            db.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        return cls(path, write=True)

    def close(self):
        with self._errors():
            self._db.close()
        if self._lock:
            self._lock.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    # ---- writing ----

    def propose(self, candidate):
        """Add a pending candidate. Its number must be :meth:`next_number`."""
        c = candidate
        values = {"number": c.number, "digest": c.graph.digest(), "parent": c.parent}
        values |= {"nodes": json.dumps(c.graph.nodes), "status": "pending", "seed": c.seed}
        values |= {"attempts": 0, "redrawn": json.dumps(c.redrawn)}
        if c.fingerprint is not None:
            values |= {"fingerprint": json.dumps(c.fingerprint), "mark": c.fingerprint[0]}
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        with self._errors(), self._db:
            self._db.execute(
                f"INSERT INTO candidates ({names}) VALUES ({marks})", tuple(values.values())
            )

    def handed_out(self, number):
        """Count one more worker that a candidate was given to; returns how many it is."""
        with self._errors(), self._db:
            self._db.execute(
                "UPDATE candidates SET attempts = attempts + 1 WHERE number = ?", (number,)
            )
            row = self._db.execute("SELECT attempts FROM candidates WHERE number = ?", (number,))
            return row.fetchone()[0]

    def record(self, number, status, **values):
        """Write the result of a pending candidate, in one transaction.

        Args:
            status: "passed", "rejected" or "failed".
            values: other columns of :class:`Candidate`.

        Returns:
            The place of the result among all of them, or None where it had one: nothing changes.
        """
        for key in ("scores", "details", "seconds"):
            if key in values:
                values[key] = json.dumps(values[key])
        values |= {"status": status, "finished_at": time.time()}
        columns = ", ".join(f"{key} = ?" for key in values)
        with self._errors(), self._db:
            place = self._db.execute("SELECT coalesce(max(finished) + 1, 0) FROM candidates")
            place = place.fetchone()[0]
            changed = self._db.execute(
                f"UPDATE candidates SET {columns}, finished = ? "
                "WHERE number = ? AND status = 'pending'",
                (*values.values(), place, number),
            )
        return place if changed.rowcount else None

    # ---- reading ----

    def __getitem__(self, number):
        """Raises KeyError where there is no candidate of that number."""
        known = 0 <= number <= _LARGEST
        found = self._candidates("number = ?", (number,)) if known else []
        if not found:
            raise KeyError(f"there is no candidate {number} in {self.path}")
        return found[0]

    def __len__(self):
        """Results there are."""
        return self._value("SELECT count(finished) FROM candidates")

    def next_number(self):
        return self._value("SELECT coalesce(max(number) + 1, 0) FROM candidates")

    def find(self, digest):
        """The first candidate with that digest that has a result or is being tried, or None."""
        found = self._candidates("digest = ? ORDER BY number LIMIT 1", (digest,))
        return found[0] if found else None

    def find_near(self, fingerprints, tolerance):
        """The first candidate whose fingerprint is near one of those given, or None.

        Near are those that differ by at most ``tolerance`` in every number. So what is within
        rounding of each other is found on whichever side of a bound it lies.

        Args:
            fingerprints: as :func:`evonorm_plugins.search.fingerprint.fingerprints` gives them.
        """

        def near(a, b):
            return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))

        query = "SELECT number, fingerprint FROM candidates WHERE mark BETWEEN ? AND ?"
        numbers = [
            row["number"]
            for given in fingerprints
            for row in self._rows(query, (given[0] - tolerance, given[0] + tolerance))
            if near(given, json.loads(row["fingerprint"]))
        ]
        return self[min(numbers)] if numbers else None

    def pending(self):
        """Candidates without a result, in order of their numbers."""
        return self._candidates("status = 'pending' ORDER BY number")

    def recent(self, count):
        """The last ``count`` candidates that passed, in order of their results."""
        found = self._candidates("status = 'passed' ORDER BY finished DESC LIMIT ?", (count,))
        return found[::-1]

    def best(self, count):
        """``count`` candidates that passed, highest mean score first, equal graphs once."""
        mean = "(SELECT avg(value) FROM json_each(scores))"
        where = f"status = 'passed' AND same_as IS NULL ORDER BY {mean} DESC, number LIMIT ?"
        return self._candidates(where, (min(count, _LARGEST),))

    def finished(self):
        """All candidates with a result, in the order of results."""
        return self._candidates("finished IS NOT NULL ORDER BY finished")

    def counts(self):
        """``{outcome: number}`` of results: "passed", "failed", or the filter that rejected."""
        rows = self._rows(
            "SELECT coalesce(filter, status) AS outcome, count(*) AS n FROM candidates "
            "WHERE finished IS NOT NULL GROUP BY outcome"
        )
        return {row["outcome"]: row["n"] for row in rows}

    def _value(self, query):
        return self._rows(query)[0][0]

    def _rows(self, query, values=()):
        with self._errors():
            return self._db.execute(query, values).fetchall()

    def _candidates(self, where, values=()):
        rows = self._rows(f"SELECT * FROM candidates WHERE {where}", values)
        return [self._candidate(dict(row)) for row in rows]

    def _candidate(self, row):
        digest = row.pop("digest")
        try:
            graph = Graph(json.loads(row.pop("nodes")))
            if graph.digest() != digest:
                raise GraphError(f"its digest is {digest!r}, that of its nodes {graph.digest()!r}")
            for key in ("scores", "details", "seconds", "redrawn"):
                row[key] = json.loads(row.get(key) or "{}")
            row.pop("mark", None)
            row["fingerprint"] = json.loads(row.get("fingerprint") or "null")
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self.path} is damaged: candidate {row['number']}: {error}"
            ) from None
        return Candidate(graph=graph, **row)

    def _errors(self):
        return explained(self.path)
