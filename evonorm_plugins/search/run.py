"""A search from its config to its end: store, Ray, workers, progress."""

import dataclasses
import functools
import os
import sys
import time
from pathlib import Path

import torch

from evonorm_plugins.errors import ConfigError, InterruptedRunError, RunError
from evonorm_plugins.search import report
from evonorm_plugins.search.config import check_same
from evonorm_plugins.search.data import check_data, task_data
from evonorm_plugins.search.driver import Driver
from evonorm_plugins.search.evaluate import evaluate
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.halving import Bars
from evonorm_plugins.search.store import Store
from evonorm_plugins.search.workers import Workers
from evonorm_plugins.training.cluster import connect
from evonorm_plugins.training.config import to_dict
from evonorm_plugins.training.memory import keep_freed_memory
from evonorm_plugins.training.ranks import Ranks, sigterm_as_interrupt

# Seconds until the lack of a worker is mentioned.
_PATIENCE = 60
_EVOLUTION = (
    "space",
    "seed",
    "window",
    "tournament",
    "winner",
    "random_share",
    "mutations",
    "moves",
)


class ProxyTask:
    """What a worker makes its evaluator of: the task of a config, its data read once."""

    def __init__(self, config):
        self.config = config

    def __call__(self, cpus):
        keep_freed_memory()  # this process is the worker's own
        torch.set_num_threads(cpus)
        task_data(self.config)
        return functools.partial(evaluate, task=self.config)


def run_search(config, *, address=None, resume=False, on_hang=None):
    """Search until there are as many results as asked for.

    Args:
        config: :class:`evonorm_plugins.search.config.Config`.
        address: of a Ray cluster (``HOST:6379``, or ``auto`` on one of its machines), whose
            machines see the same files; None starts Ray on this machine.
        resume: go on with the search in ``config.store``, if there is one.
        on_hang: see :func:`evonorm_plugins.training.cluster.connect`.

    Returns:
        :func:`evonorm_plugins.search.report.numbers` of the store, and as ``"queue"`` those of
        :meth:`evonorm_plugins.search.driver.Driver.queue`.

    Raises:
        ConfigError: the store holds a search with other options, or one and ``resume`` is False;
            this machine, where workers run on it, has no such device.
        DataError: the images cannot be used.
        RayError: Ray is not installed, cannot start or cannot be reached.
        RunError: no worker can start, no candidate can be evaluated, or another search writes to
            the store.
        InterruptedRunError: Ctrl-C or SIGTERM.
        StoreError: the store is damaged.
    """
    needs = {"cpus": config.cpus_per_worker, "gpus": config.gpus_per_worker}
    with open_store(config, resume, lambda: _check_task(config, address)) as store:
        ray = connect(address, unit="worker", on_hang=on_hang, **needs)
        try:
            actors = config.workers or _room(ray, **needs)
            # Whole paths: a worker may have a folder of its own.
            given = {key: getattr(config, key) for key in ("data", "val_data")}
            paths = {key: os.path.abspath(path) for key, path in given.items() if path}
            task = ProxyTask(dataclasses.replace(config, **paths))
            workers = Workers(ray, task, actors=actors, **needs)
            driver = drive(
                store,
                workers,
                Evolution(**{key: getattr(config, key) for key in _EVOLUTION}),
                candidates=config.candidates,
                hours=config.hours,
                seed=config.seed,
                same=config.same,
                redraws=config.redraws,
                bars=_bars(config),
            )
            return {**report.numbers(store, config.cpus_per_worker), "queue": driver.queue()}
        finally:
            ray.shutdown()


def _bars(config):
    """Of the filters that compare a candidate with those before it, or None."""
    if not {"rungs", "top"} & set(config.filters):
        return None
    return Bars(config.rung_share, config.top_share, config.least_results)


def drive(store, workers, evolution, **options):
    """Run a :class:`Driver` with a progress bar, until it ends or is stopped; returns it.

    Args:
        options: of the driver.

    Raises:
        RunError, InterruptedRunError: see :func:`run_search`.
    """
    from tqdm import tqdm

    driver = Driver(store, workers, evolution, **options)
    best = store.best(1)
    say(f"{driver.done} results so far in {store.path}")
    with (
        tqdm(total=driver.candidates, initial=driver.done, unit="layer", dynamic_ncols=True) as bar,
        sigterm_as_interrupt(),
    ):
        state = _State(bar, best[0].score if best else None)
        driver.on_result = state.show
        try:
            _wait_for_worker(workers)
            driver.run()
        except KeyboardInterrupt:
            bar.close()
            raise InterruptedRunError(
                f"stopped with {driver.done} results in {store.path}, {driver.running} candidates "
                "were being evaluated; the same command with --resume goes on"
            ) from None
        finally:
            workers.close()
    return driver


def _wait_for_worker(workers):
    try:
        while not workers.check(_PATIENCE):
            say("no worker has started yet: is there room for one?")
    except RuntimeError as error:
        raise RunError(f"no worker can start: {error}") from None


class _State:
    """What the progress bar shows, brought up to date a few times a second."""

    def __init__(self, bar, best):
        self.bar, self.best, self.shown = bar, best, 0.0

    def show(self, candidate, driver):
        score = candidate.score
        if score is not None and (self.best is None or score > self.best):
            self.best = score
            self.bar.write(
                f"candidate {candidate.number}: {score:.4f}  {candidate.graph}", sys.stderr
            )
        self.bar.update(driver.done - self.bar.n)
        if time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            counts = {name: driver.counts[name] for name in sorted(driver.counts)}
            best = {} if self.best is None else {"best": f"{self.best:.4f}"}
            self.bar.set_postfix({**counts, **best, "running": driver.running})


def _check_task(config, address):
    """What would else be found by every worker."""
    if address is None:
        Ranks(config.device)
    check_data(config)


def open_store(config, resume, check=lambda: None, kind="search"):
    """The :class:`Store` of a search, open for writing, made if there is none.

    Args:
        kind: what its candidates are: "search", or "filters", a sample that all filters were asked
            about.
        check: called once it is known that the search can begin or go on, before a file is made.

    Raises:
        ConfigError, StoreError, RunError: see :func:`run_search`.
    """
    if not config.store:
        raise ConfigError("store=: the name is empty")
    path = Path(config.store)
    if path.exists():
        store = Store(path, write=True)
        try:
            if store.next_number():
                if not resume:
                    raise ConfigError(
                        f"store={path} holds a search already: go on with --resume, or name "
                        "another one"
                    )
                if store.config.get("kind", "search") != kind:
                    other = {"search": "search", "filters": "sample of filters"}[kind]
                    raise ConfigError(f"store={path} holds no {other}: name another one")
                check_same(config, store.config, path)
            check()
        except BaseException:
            store.close()
            raise
        if store.next_number():
            return store
        store.close()  # a search that never began, for lack of a worker
        path.unlink()
    else:
        check()
    return Store.create(path, {**to_dict(config), "kind": kind})


def _room(ray, cpus, gpus):
    there = ray.cluster_resources()
    room = there.get("CPU", 0) // cpus
    if gpus:
        room = min(room, there.get("GPU", 0) // gpus)
    return max(1, int(room))


def say(text):
    """To people: stdout is for results."""
    print(text, file=sys.stderr, flush=True)
