"""A search from its config to its end: store, Ray, workers, progress."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path

from evonorm_plugins.errors import ConfigError, InterruptedRunError, RunError
from evonorm_plugins.search import report
from evonorm_plugins.search.config import check_same
from evonorm_plugins.search.driver import Driver
from evonorm_plugins.search.evolution import Evolution
from evonorm_plugins.search.proxy import to_dict
from evonorm_plugins.search.store import Store
from evonorm_plugins.search.workers import Workers
from evonorm_plugins.training.cluster import connect
from evonorm_plugins.training.memory import keep_freed_memory

# Seconds until the lack of a worker is mentioned.
_PATIENCE = 60
_EVOLUTION = ("space", "seed", "window", "tournament", "winner", "random_share", "mutations")


class ProxyTask:
    """What a worker makes its evaluator of: the proxy task of a config, its data read once."""

    def __init__(self, config):
        self.config = config

    def __call__(self, cpus):
        import torch

        from evonorm_plugins.search.evaluate import evaluate
        from evonorm_plugins.search.proxy import task_data

        keep_freed_memory()  # this process is the worker's own
        torch.set_num_threads(cpus)
        task_data(self.config)
        return functools.partial(evaluate, task=self.config)


def run_search(config, *, address=None, resume=False, on_hang=None):
    """Search until there are as many results as asked for; returns a report of it, as text.

    Args:
        config: :class:`evonorm_plugins.search.config.Config`.
        address: of a Ray cluster (``HOST:6379``, or ``auto`` on one of its machines), whose
            machines see the same files; None starts Ray on this machine.
        resume: go on with the search in ``config.store``, if there is one.
        on_hang: see :func:`evonorm_plugins.training.cluster.connect`.

    Raises:
        ConfigError: the store holds a search with other options, or one and ``resume`` is False.
        FileNotFoundError: the data is not there.
        RayError: Ray is not installed, cannot start or cannot be reached.
        RunError: no worker can start, or no candidate can be evaluated.
        InterruptedRunError: Ctrl-C or SIGTERM.
        StoreError: the store is damaged, or another search writes to it.
    """
    given = [key for key in ("data", "val_data") if getattr(config, key)]
    for key in given:
        if not os.path.exists(getattr(config, key)):
            raise FileNotFoundError(f"there is no {key}={getattr(config, key)!r}")
    with _opened(config, resume) as store:
        needs = {"cpus": config.cpus_per_worker, "gpus": config.gpus_per_worker}
        ray = connect(address, unit="worker", on_hang=on_hang, **needs)
        try:
            actors = config.workers or _room(ray, **needs)
            # Whole paths: a worker may have a folder of its own.
            paths = {key: os.path.abspath(getattr(config, key)) for key in given}
            task = ProxyTask(dataclasses.replace(config, **paths))
            workers = Workers(ray, task, actors=actors, **needs)
            driver = drive(
                store,
                workers,
                Evolution(**{key: getattr(config, key) for key in _EVOLUTION}),
                candidates=config.candidates,
                hours=config.hours,
                seed=config.seed,
            )
            return f"{report.summary(store, config.cpus_per_worker)}\n{driver.queue_report()}"
        finally:
            ray.shutdown()


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
        _stopping(),
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


def _opened(config, resume):
    path = Path(config.store)
    if not path.exists():
        return Store.create(path, to_dict(config))
    store = Store(path, write=True)
    try:
        if store.next_number() == 0:  # a search that never began, for lack of a worker
            store.close()
            path.unlink()
            return Store.create(path, to_dict(config))
        if not resume:
            raise ConfigError(
                f"store={path} holds a search already: go on with --resume, or name another one"
            )
        check_same(config, store.config, path)
    except BaseException:
        store.close()
        raise
    return store


def _room(ray, cpus, gpus):
    there = ray.cluster_resources()
    room = there.get("CPU", 0) // cpus
    if gpus:
        room = min(room, there.get("GPU", 0) // gpus)
    return max(1, int(room))


@contextlib.contextmanager
def _stopping():
    """SIGTERM as Ctrl-C, until the end of the block."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text):
    """To people: stdout is for results."""
    print(text, file=sys.stderr, flush=True)
