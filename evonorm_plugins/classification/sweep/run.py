"""A sweep from its first trial, or the ones it was stopped at, to its last."""

import json
import os
import sys
import time
import traceback
from pathlib import Path

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.classification.run import train
from evonorm_plugins.classification.sweep import ray_tune, report
from evonorm_plugins.errors import ConfigError, InterruptedRunError, NonFiniteError
from evonorm_plugins.files import replacing

# Keys of the training config that say where a trial runs and what it reads, not what it computes.
_PATHS = ("data", "val_data", "output_dir")
_MACHINE = (*_PATHS, "workers", "prefetch", "progress")


def run_sweep(sweep, *, address=None, resume=False, train=train):
    """Run the trials that have not ended yet; write the results after each.

    ``output_dir`` gets ``sweep.json`` (the sweep and what became of each trial), ``results.csv``,
    ``results.txt``, ``accuracy.png`` and a folder for each trial. A trial whose loss is not finite
    is recorded as "diverged"; one that fails in another way as "failed", and resuming runs it
    again. A trial that was stopped half way goes on from its last checkpoint.

    Args:
        sweep: :class:`Sweep`.
        address: of a Ray cluster (``HOST:6379``, or ``auto`` on one of its machines), whose
            machines see the same files; None starts Ray on this machine.
        resume: go on with the sweep in ``output_dir``, if there is one.
        train: ``train(config, resume=, on_epoch=)`` of a trial.

    Returns:
        The records of all trials: ``trial``, ``values``, ``status`` ("finished", "diverged" or
        "failed"), and where it has them ``val_accuracy``, ``val_loss``, ``epoch``, ``seconds`` and
        ``error``.

    Raises:
        ConfigError: the folder holds another sweep, or one and ``resume`` is False.
        FileNotFoundError: the data of the training config is not there.
        RayError: Ray is not installed, cannot start or cannot be reached.
        InterruptedRunError: Ctrl-C.
    """
    _check_data(sweep.base)
    path = Path(sweep.output_dir, "sweep.json")
    chosen = sweep.choose()
    records = _load(path, sweep, resume)
    records = {n: r for n, r in records.items() if r["status"] != "failed"}
    pending = [n for n in range(len(chosen)) if n not in records]
    _say(
        f"{len(chosen)} trials of {sweep.combinations} combinations, "
        f"{len(chosen) - len(pending)} of them done, in {sweep.output_dir}"
    )
    if pending:
        ray_tune.start(sweep, address)
    os.makedirs(sweep.output_dir, exist_ok=True)
    _save(path, sweep, records)

    def results():
        return [records[number] for number in sorted(records) if number < len(chosen)]

    def ended(number, outcome):
        records[number] = {"trial": number, "values": chosen[number], **outcome}
        _save(path, sweep, records)
        report.write(sweep, results())
        _say(f"{_name(number, chosen)}: {report.summary(records[number])}")

    def progress(number, record):
        _say(f"{_name(number, chosen)}: {report.progress(record)}")

    configs = {n: _anywhere(sweep.trial_config(n, chosen[n])) for n in pending}
    try:
        if pending:
            ray_tune.run_trials(configs, train, sweep, progress, ended)
    except KeyboardInterrupt:
        pass  # Ray Tune itself ends at the first Ctrl-C: what is missing below says so
    report.write(sweep, results())  # also where all had ended, and fewer are asked for
    missing = len(chosen) - len(results())
    if missing:
        raise InterruptedRunError(
            f"stopped with {missing} of {len(chosen)} trials to go; the same command with --resume "
            "goes on"
        )
    return results()


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
        os.makedirs(config["output_dir"], exist_ok=True)
        Path(config["output_dir"], "error.txt").write_text(traceback.format_exc())
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - start, **outcome, **newest}


def _anywhere(config):
    """The config with whole paths: Ray runs each trial in a folder of its own."""
    paths = {key: os.path.abspath(config[key]) for key in _PATHS if config[key]}
    return {**config, **paths}


def _check_data(base):
    # Every trial would fail, minutes later.
    for key in ("data", "val_data"):
        if not os.path.exists(base[key]):
            raise FileNotFoundError(f"there is no {key}={base[key]!r}")


def _load(path, sweep, resume):
    """Records of the trials that ended before, by number."""
    if not path.exists():
        return {}
    if not resume:
        raise ConfigError(
            f"output_dir={sweep.output_dir} holds a sweep already: go on with --resume, or name "
            "another one"
        )
    saved = json.loads(path.read_text())
    now = json.loads(json.dumps(_identity(sweep)))
    for part in ("search_seed", "search", "together"):
        if saved[part] != now[part]:
            raise ConfigError(
                f"{path} has {part}={saved[part]}, now it is {now[part]}: give the same, or "
                "another output_dir"
            )
    changed = [k for k in now["base"] if saved["base"].get(k) != now["base"][k]]
    if changed:
        what = ", ".join(f"{k}={saved['base'].get(k)!r} (now {now['base'][k]!r})" for k in changed)
        raise ConfigError(f"{path} was run with {what}: give the same, or another output_dir")
    return {record["trial"]: record for record in saved["trials"]}


def _identity(sweep):
    base = {k: v for k, v in sweep.base.items() if k not in (*_MACHINE, *sweep.search)}
    return {
        "base": base,
        "search": sweep.search,
        "together": sweep.together,
        "search_seed": sweep.search_seed,
    }


def _save(path, sweep, records):
    state = {**_identity(sweep), "trials": [records[number] for number in sorted(records)]}
    with replacing(path) as partial:
        partial.write_text(json.dumps(state, indent=1) + "\n")


def _name(number, chosen):
    values = ", ".join(f"{k}={v}" for k, v in chosen[number].items())
    return f"trial {number} of {len(chosen)} ({values})"


def _say(text):
    print(text, file=sys.stderr, flush=True)
