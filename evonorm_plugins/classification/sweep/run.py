"""A sweep from its first trial, or the ones it was stopped at, to its last."""

import json
import os
import sys
from pathlib import Path

from evonorm_plugins.classification.run import train
from evonorm_plugins.classification.sweep import ray_tune, report
from evonorm_plugins.errors import ConfigError, DataError, InterruptedRunError
from evonorm_plugins.files import check_folder, replacing

# Keys of the training config that say where a trial runs and what it reads, not what it computes.
_PATHS = ("data", "val_data", "output_dir")
_MACHINE = (*_PATHS, "workers", "prefetch", "progress")


def run_sweep(sweep, *, address=None, resume=False, train=train, on_hang=None):
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
        on_hang: see :func:`evonorm_plugins.training.cluster.connect`.

    Returns:
        The records of all trials: ``trial``, ``values``, ``status`` ("finished", "diverged" or
        "failed"), and where it has them ``val_accuracy``, ``val_loss``, ``epoch``, ``seconds`` and
        ``error``.

    Raises:
        ConfigError: the folder holds another sweep, or one and ``resume`` is False, or cannot be
            written to.
        DataError: the data of the training config is not there.
        RayError: Ray is not installed, cannot start or cannot be reached.
        InterruptedRunError: Ctrl-C.
    """
    check_folder(sweep.output_dir)
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
        ray_tune.start(sweep, address, on_hang)
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


def _anywhere(config):
    """The config with whole paths: Ray runs each trial in a folder of its own."""
    paths = {key: os.path.abspath(config[key]) for key in _PATHS if config[key]}
    return {**config, **paths}


def _check_data(base):
    # Every trial would fail, minutes later.
    for key in ("data", "val_data"):
        # Without val_data images of data are held out.
        if not os.path.exists(base[key]) and (base[key] or key == "data"):
            raise DataError(f"there is no {key}={base[key]!r}")


def _load(path, sweep, resume):
    """Records of the trials that ended before, by number."""
    if not path.exists():
        return {}
    if not resume:
        raise ConfigError(
            f"output_dir={sweep.output_dir} holds a sweep already: go on with --resume, or name "
            "another one"
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        records = {record["trial"]: record for record in saved["trials"]}
        parts = {part: saved[part] for part in ("base", "search_seed", "search", "together")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no record of a sweep ({type(error).__name__}): name another output_dir"
        ) from None
    now = json.loads(json.dumps(_identity(sweep)))
    for part in ("search_seed", "search", "together"):
        if parts[part] != now[part]:
            raise ConfigError(
                f"{path} has {part}={parts[part]}, now it is {now[part]}: give the same, or "
                "another output_dir"
            )
    changed = [k for k in now["base"] if parts["base"].get(k) != now["base"][k]]
    if changed:
        what = ", ".join(f"{k}={saved['base'].get(k)!r} (now {now['base'][k]!r})" for k in changed)
        raise ConfigError(f"{path} was run with {what}: give the same, or another output_dir")
    return records


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
