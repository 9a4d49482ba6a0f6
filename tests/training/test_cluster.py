"""Starting Ray, and what can be wrong with that."""

import logging
import subprocess
import sys
import threading
import types

import pytest

from evonorm_plugins.errors import RayError
from evonorm_plugins.training import cluster


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port"])
def test_an_address_that_is_none(address):
    with pytest.raises(RayError, match=r"must be HOST:PORT .* or auto"):
        cluster._check_address(address)


def test_a_cluster_that_is_not_there():
    with pytest.raises(RayError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        cluster._check_address("127.0.0.1:1")


HANGS = """
import sys, time, types
from evonorm_plugins.training import cluster
cluster._START_SECONDS = 0.1
ray = types.SimpleNamespace(init=lambda **options: time.sleep(60), is_initialized=lambda: False)
sys.modules["ray"] = ray
cluster.connect(None, unit="trial", cpus=1, on_hang=cluster.end_process)
"""


def test_a_start_that_hangs_ends_a_command():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Ray has not started within 0.1 s; its logs are in")


def test_a_start_that_hangs_ends_no_other_program(monkeypatch):
    warned, said = threading.Event(), []
    handler = logging.Handler()
    handler.emit = lambda record: (said.append(record.getMessage()), warned.set())
    monkeypatch.setattr(logging.getLogger(cluster.__name__), "handlers", [handler])
    monkeypatch.setattr(cluster, "_START_SECONDS", 0.01)
    ray = types.SimpleNamespace(
        init=lambda **options: warned.wait(10),
        is_initialized=lambda: False,
        cluster_resources=lambda: {"CPU": 1.0},
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert cluster.connect(None, unit="trial", cpus=1) is ray
    assert said[0].startswith("Ray has not started within 0.01 s")


def test_more_than_there_is(monkeypatch):
    ray = types.SimpleNamespace(
        init=lambda **options: None,
        is_initialized=lambda: False,
        cluster_resources=lambda: {"CPU": 2.0},
        shutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(RayError, match="cpus_per_trial=4, and this machine has 2"):
        cluster.connect(None, unit="trial", cpus=4)
    with pytest.raises(RayError, match="gpus_per_worker=1, and this machine has 0"):
        cluster.connect(None, unit="worker", cpus=1, gpus=1)
