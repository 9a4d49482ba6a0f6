"""Random search over the options of a training config, on Ray Tune."""

import sys

from evonorm_plugins.classification.sweep.config import Sweep, load_sweep
from evonorm_plugins.classification.sweep.report import as_text
from evonorm_plugins.classification.sweep.run import run_sweep
from evonorm_plugins.errors import ConfigError, RunError

__all__ = ["Sweep", "load_sweep", "main", "run_sweep"]


def main(path, overrides=(), *, resume=False, address=None):
    """``tools/train_classifier.py --sweep``: results on stdout, the rest on stderr.

    Returns:
        The exit status: 0 done, 1 stopped, no trial finished or no Ray, 2 bad input.
    """
    try:
        sweep = load_sweep(path, overrides)
        records = run_sweep(sweep, address=address, resume=resume)
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(as_text(sweep, records))
    return 0 if any(record["status"] == "finished" for record in records) else 1
