"""Trials on Ray Tune: on this machine, or on a cluster. Ray is imported when they start."""

import functools
import logging
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

# Megabytes: trials exchange numbers, not tensors. Ray's own choice is a third of the memory.
_OBJECT_STORE = 80
_START_SECONDS = 120
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would send reports
    "RAY_AIR_NEW_OUTPUT": "0",  # tables on stdout
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard of each trial
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # after Ctrl-C a trial would run on for up to 10 minutes
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class RayError(RuntimeError):
    """Ray is not installed, cannot start, or does not answer."""


def start(sweep, address):
    """Start Ray on this machine, or connect to a cluster's at ``address``.

    Raises:
        RayError: Ray is not installed, cannot start, does not answer, or this machine has not what
            one trial of ``sweep`` asks for.
    """
    os.environ.update(_QUIET)
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise RayError(f'a sweep needs Ray ({error}): pip install "ray[tune]"') from None
    _connect(ray, sweep, address)
    # What fails is reported by ended(), not as a traceback from inside of Ray.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def run_trials(configs, train, sweep, progress, ended):
    """Run trials as there is room for them; return when all ended, or at Ctrl-C. Stops Ray.

    Args:
        configs: ``{number: plain dictionary of a training config}``.
        train: as in :func:`run_sweep`.
        sweep: :class:`Sweep`, for the resources.
        progress: ``progress(number, record)`` after each epoch of a trial.
        ended: ``ended(number, outcome)`` once for each trial, on this machine.
    """
    import ray
    from ray import tune

    class Report(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **info):
            number = trial.config["trial"]
            if "outcome" in result:
                ended(number, result["outcome"])
            elif "record" in result:
                progress(number, result["record"])

        def on_trial_error(self, iteration, trials, trial, **info):
            # The trial itself reports exceptions: this is its process. What Ray knows comes later.
            number = trial.config["trial"]
            error = f"the process died or could not start; see {_error_file(configs[number])}"
            ended(number, {"status": "failed", "error": error})

    trial = functools.partial(_trial, configs=configs, train=train, threads=sweep.cpus_per_trial)
    resources = {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}
    try:
        # Tune's own records serve nothing here: sweep.json is what a sweep is resumed from.
        with tempfile.TemporaryDirectory(prefix="sweep-") as storage:
            results = tune.Tuner(
                tune.with_resources(trial, resources),
                param_space={"trial": tune.grid_search(list(configs))},
                tune_config=tune.TuneConfig(max_concurrent_trials=sweep.concurrent),
                run_config=tune.RunConfig(
                    name="sweep", storage_path=storage, verbose=0, callbacks=[Report()]
                ),
            ).fit()
            for result in results:
                if result.error:
                    file = _error_file(configs[result.config["trial"]])
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(f"{result.error}\n")
    finally:
        ray.shutdown()


def _error_file(config):
    return Path(config["output_dir"], "error.txt")


def _trial(settings, configs, train, threads):
    import torch
    from ray import tune

    from evonorm_plugins.classification.sweep.run import run_trial

    torch.set_num_threads(threads)
    config = configs[settings["trial"]]
    outcome = run_trial(config, train, lambda record: tune.report({"record": record}))
    tune.report({"outcome": outcome})


def _connect(ray, sweep, address):
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": _OBJECT_STORE * 2**20}
        if ray.is_initialized():
            raise RayError("Ray runs in this process already")
    else:
        options["address"] = address
        _check_address(address)
    # Ray starts its processes from here, not from a thread: they end with the thread they are from.
    timer = threading.Timer(_START_SECONDS, _give_up, [address])
    timer.daemon = True
    timer.start()
    try:
        ray.init(**options)
    except Exception as error:
        where = "start" if address is None else f"connect to {address}"
        raise RayError(f"Ray cannot {where}: {' '.join(str(error).split())}") from error
    finally:
        timer.cancel()
    if address is None:
        _check_resources(ray, sweep)


def _check_address(address):
    """A cluster that is not there, found out in seconds instead of minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://") or not (colon and host and port.isdigit()):
        raise RayError(
            f"address={address!r} must be HOST:PORT of a Ray cluster's head (port 6379 unless told "
            "otherwise), or auto on one of its machines"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RayError(f"no Ray cluster answers at {address}: {error}") from None


def _check_resources(ray, sweep):
    # A trial that asks for more than there is would wait for ever.
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", sweep.cpus_per_trial), ("GPU", sweep.gpus_per_trial)):
        if wanted > there.get(kind, 0):
            ray.shutdown()
            key = f"{kind.lower()}s_per_trial"
            raise RayError(f"{key}={wanted:g}, and this machine has {there.get(kind, 0):g}")


def _give_up(address):
    what = "started" if address is None else f"answered at {address}"
    print(
        f"error: Ray has not {what} within {_START_SECONDS} s; its logs are in "
        "/tmp/ray/session_latest/logs",
        file=sys.stderr,
        flush=True,
    )
    # The main thread waits inside of Ray, where no exception reaches it.
    os._exit(1)
