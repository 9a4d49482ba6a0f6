"""Random search over the options of a training config, on Ray Tune."""

import json

from evonorm_plugins.classification.sweep.config import Sweep, load_sweep
from evonorm_plugins.classification.sweep.report import as_text
from evonorm_plugins.classification.sweep.run import run_sweep
from evonorm_plugins.training.cluster import end_process

__all__ = ["Sweep", "load_sweep", "main", "run_sweep"]


def main(path, overrides=(), *, resume=False, address=None, as_json=False):
    """The work of a command: results on stdout, as a table or JSON, the rest on stderr.

    Returns:
        The exit status: 0 done, 1 no trial finished.

    Raises:
        InputError, RunError: see :func:`load_sweep` and :func:`run_sweep`.
    """
    sweep = load_sweep(path, overrides)
    records = run_sweep(sweep, address=address, resume=resume, on_hang=end_process)
    print(json.dumps(records) if as_json else as_text(sweep, records))
    return 0 if any(record["status"] == "finished" for record in records) else 1
