"""Every option of a search: what is evaluated, what is tried next, on which workers."""

import dataclasses
import json

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.search import proxy
from evonorm_plugins.search.proxy import Task
from evonorm_plugins.training.config import check_choices, check_minimum, read_values


@dataclasses.dataclass
class Config(Task):
    """Options of a search beside those of its proxy task; see docs/search.md."""

    # ---- evolution: see evonorm_plugins.search.evolution ----
    random_share: float = 0.5  # of proposals; 1 is random search
    winner: str = "pareto"  # or "average"
    window: int = 2500  # most recent candidates that passed, which can be parents
    tournament: float = 0.05  # share of the window
    mutations: int = 2  # of a child

    # ---- size ----
    candidates: int | None = None  # results in all
    hours: float | None = None  # of this run; then no more are handed out

    # ---- machine ----
    workers: int | None = None  # None: as many as there is room for
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    store: str = "output/search.sqlite"


CHOICES = {"winner": ["pareto", "average"]}
# Lowest value.
MINIMUM = {
    **dict.fromkeys(("window", "mutations", "candidates", "workers", "cpus_per_worker"), 1),
    **dict.fromkeys(("random_share", "gpus_per_worker"), 0),
    **dict.fromkeys(("tournament", "hours"), 1e-12),
}
# What a resumed search may have other than before: where it runs, what it reads, when it ends.
_MAY_CHANGE = ("data", "val_data", "device", "candidates", "hours", "workers", "store")
_MAY_CHANGE += ("cpus_per_worker", "gpus_per_worker")


def load_config(path, overrides=()):
    """Read a YAML file and ``key=value`` strings, checked.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    return from_dict(read_values(path, overrides, "search"))


def from_dict(values):
    """A checked :class:`Config` of a plain dictionary. Raises :class:`ConfigError`."""
    config = proxy.from_dict(values, Config)
    check_choices(config, CHOICES)
    check_minimum(config, MINIMUM)
    for key in ("random_share", "tournament"):
        if getattr(config, key) > 1:
            raise ConfigError(f"{key}={getattr(config, key)} is a share, at most 1")
    if config.candidates is None and config.hours is None:
        raise ConfigError("give candidates=NUMBER or hours=NUMBER: when the search is to end")
    return config


def check_same(config, saved, path):
    """Raise :class:`ConfigError` where a search in ``path`` was begun with other options.

    Args:
        saved: the plain dictionary that it was begun with.
    """
    now = json.loads(json.dumps(proxy.to_dict(config)))
    changed = [k for k in now if k not in _MAY_CHANGE and saved.get(k) != now[k]]
    if changed:
        what = ", ".join(f"{k}={saved.get(k)!r} (now {now[k]!r})" for k in changed)
        raise ConfigError(f"{path} was begun with {what}: give the same, or another store")
