"""Trials on Ray Tune: on this machine, or on a cluster. Ray is imported when they start."""

import functools
import logging
import os
import tempfile

from evonorm_plugins.classification.sweep.trial import error_file, run_trial, write_error
from evonorm_plugins.errors import RayError
from evonorm_plugins.training.cluster import connect
from evonorm_plugins.training.memory import keep_freed_memory

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # tables on stdout
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard of each trial
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # after Ctrl-C a trial would run on for up to 10 minutes
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def start(sweep, address, on_hang=None):
    """Start Ray for the trials of ``sweep``; see :func:`evonorm_plugins.training.cluster.connect`.

    Raises:
        RayError: as there, or Ray Tune is not installed.
    """
    os.environ.update(_QUIET)
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise RayError(f'a sweep needs Ray ({error}): pip install "ray[tune]"') from None
    needs = {"cpus": sweep.cpus_per_trial, "gpus": sweep.gpus_per_trial}
    connect(address, unit="trial", on_hang=on_hang, **needs)
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
            error = f"the process died or could not start; see {error_file(configs[number])}"
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
                    write_error(configs[result.config["trial"]], f"{result.error}\n")
    finally:
        ray.shutdown()


def _trial(settings, configs, train, threads):
    import torch
    from ray import tune

    # This process is the trial's own.
    keep_freed_memory()
    torch.set_num_threads(threads)
    config = configs[settings["trial"]]
    outcome = run_trial(config, train, lambda record: tune.report({"record": record}))
    tune.report({"outcome": outcome})
