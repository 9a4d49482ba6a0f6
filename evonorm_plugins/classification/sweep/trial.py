"""One trial of a sweep, in a process of its own."""

import contextlib
import time
import traceback
from pathlib import Path

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.errors import InputError, NonFiniteError, RunError
from evonorm_plugins.files import replacing


def run_trial(config, train, on_epoch):
    """What becomes of one trial, as a dictionary; on the machine that Ray chose.

    Args:
        config: plain dictionary of a training config.
        train, on_epoch: as in :func:`run_sweep`.
    """
    start, newest = time.perf_counter(), {}

    def take_in(record):
        newest.update({key: record[key] for key in ("epoch", "val_accuracy", "val_loss")})

    def epoch_done(record):
        take_in(record)
        on_epoch(dict(newest))

    try:
        result = train(from_dict(config), resume=True, on_epoch=epoch_done)
        if result["status"] != "done":
            raise RuntimeError(f"training has {result['status']}")
        take_in(result["epochs"][-1])  # a run that had ended before validates no more
        outcome = {"status": "finished", "seconds": result["seconds"]}
    except NonFiniteError as error:
        outcome = {"status": "diverged", "error": str(error)}
    except Exception as error:
        write_error(config, traceback.format_exc())
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - start, **outcome, **newest}


def error_file(config):
    """Where the reason of a failed trial is, of a plain dictionary of a training config."""
    return Path(config["output_dir"], "error.txt")


def write_error(config, text):
    """Write ``text`` to :func:`error_file`, if the disk lets it."""
    with contextlib.suppress(OSError, InputError, RunError), replacing(error_file(config)) as file:
        file.write_text(text)
