"""The SQLite file under a store: its tables, how it is opened and locked, its errors."""

import contextlib
import fcntl
import json
import sqlite3

from evonorm_plugins.errors import NoSpaceError, RunError, StoreError

TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY,  -- in the order of proposals, from 0
    digest TEXT NOT NULL,        -- the same for structurally equal graphs
    nodes TEXT NOT NULL,         -- JSON
    parent INTEGER,              -- the number of what it was mutated from
    status TEXT NOT NULL,        -- pending, passed, rejected, failed
    filter TEXT,                 -- which one rejected it
    scores TEXT,                 -- JSON: anchor architecture -> validation accuracy
    details TEXT,                -- JSON: what the filters measured
    seconds TEXT,                -- JSON: stage -> seconds of a worker
    cost REAL NOT NULL DEFAULT 0, -- their sum
    seed INTEGER,                -- of its training
    same_as INTEGER,             -- the number of the equal candidate whose result this is
    attempts INTEGER NOT NULL,   -- workers that it was handed to
    error TEXT,                  -- of a failed one
    finished INTEGER UNIQUE,     -- in the order of results, from 0
    finished_at REAL             -- Unix time
) STRICT;
CREATE INDEX by_digest ON candidates (digest);
CREATE INDEX by_status ON candidates (status, finished);
"""
# What version 2 has beside; a search that is gone on with gets them, those that are read need not.
SINCE_2 = """
ALTER TABLE candidates ADD COLUMN fingerprint TEXT; -- JSON, of one that is no other's equal
ALTER TABLE candidates ADD COLUMN mark REAL;        -- its first number
ALTER TABLE candidates ADD COLUMN redrawn TEXT;     -- JSON: why -> proposals drawn before it
CREATE INDEX by_mark ON candidates (mark);
"""


@contextlib.contextmanager
def explained(path):
    """SQLite's errors as those of this package."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "no such column" in str(error):
            raise StoreError(f"{path} is no search's file: {error}") from None
        kind = NoSpaceError if "full" in str(error) else RunError
        raise kind(f"{path} cannot be used: {error}") from None
    except (sqlite3.Error, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise StoreError(f"{path} is no search's file or is damaged: {error}") from None


def uri(path, write):
    """What SQLite opens.

    Even a reader would leave ``-wal`` and ``-shm`` files beside a file that was once written by a
    search, unless it is told that nobody writes: there is no log then whose lines it could miss.
    """
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=rw" if write else "mode=ro" if log.exists() else "mode=ro&immutable=1"
    return f"{path.absolute().as_uri()}?{mode}"


def lock_file(path):
    """Held until the file is closed or the process ends, however it ends."""
    try:
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115 (closed by the store)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise RunError(f"{path} is being written by another process") from None
    return lock
