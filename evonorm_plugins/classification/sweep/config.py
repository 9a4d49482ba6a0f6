"""What a sweep is made of: a training config, lists of values for some of its keys, resources.

A sweep file is YAML::

    base: cifar10_mini_inception.yaml    # a training config, relative to this file
    search:                              # keys of the training config, and what to try
      norm: [EvoNormS0(groups=4), EvoNormS0(groups=8)]
      lr: [1e-2, 1e-3]
      images_per_worker:                 # a name of our own for keys that change together
        32: {batch_size: 32, accumulations: 4}
        2: {batch_size: 2, accumulations: 64}
    trials: 20                           # null: every combination
"""

import dataclasses
import math
import os
import random

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.configs import find_config
from evonorm_plugins.errors import ConfigError, shown
from evonorm_plugins.training.config import (
    build,
    read_overrides,
    read_values,
    to_dict,
)


@dataclasses.dataclass
class Sweep:
    """A checked sweep; :func:`load_sweep` makes one.

    ``search`` holds the values as the training config has them (``1e-2`` of a YAML file, which is
    a string, is a number here), or the names of settings that change together, which ``together``
    holds: ``{key: {name: {key of the training config: value}}}``. ``base`` is the training config
    without them.
    """

    base: dict = dataclasses.field(default_factory=dict)
    search: dict = dataclasses.field(default_factory=dict)
    together: dict = dataclasses.field(default_factory=dict)
    trials: int | None = 20  # None: every combination
    search_seed: int = 0  # of the choice of trials; the training's own seed is the config's
    concurrent: int | None = None  # trials at a time; None: as many as there are CPUs and GPUs for
    cpus_per_trial: int = 1  # as many threads
    gpus_per_trial: float = 0.0
    output_dir: str = "output/sweep"

    @property
    def combinations(self):
        """How many different trials there are."""
        return math.prod(map(len, self.search.values()))

    def choose(self):
        """The trials: a list of ``{key: value}``, all different, in the order they are started in.

        More trials with the same seed begin with the same ones.
        """
        generator = random.Random(self.search_seed)
        wanted, chosen = min(self.trials or self.combinations, self.combinations), {}
        while len(chosen) < wanted:
            chosen.setdefault(generator.randrange(self.combinations))
        return [self._combination(number) for number in chosen]

    def trial_config(self, number, values):
        """The training config of a trial, as a plain dictionary."""
        own = {"output_dir": os.path.join(self.output_dir, "trials", f"{number:03d}")}
        values = _settings(values, self.together)
        return to_dict(from_dict({**self.base, **values, **own, "progress": False}))

    def _combination(self, number):
        values = {}
        for key, choices in self.search.items():
            number, position = divmod(number, len(choices))
            values[key] = choices[position]
        return values


def _settings(values, together):
    """``{key of the training config: value}`` of a trial's values."""
    settings = {}
    for key, value in values.items():
        settings.update(together[key][value] if key in together else {key: value})
    return settings


# Keys of a sweep's file.
_KEYS = [f.name for f in dataclasses.fields(Sweep) if f.name != "together"]
MINIMUM = {
    **dict.fromkeys(("trials", "concurrent", "cpus_per_trial"), 1),
    **dict.fromkeys(("search_seed", "gpus_per_trial"), 0),
}


def load_sweep(path, overrides=()):
    """Read a sweep file and ``key=value`` strings, checked.

    A key of the sweep file is replaced there; a key that is searched over gets the value, or the
    list of values, to search over instead; any other is one of the training config. ``base`` names
    a training config: in the file relative to it, as a string as any path.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    path = find_config(path, "sweep")
    values, given = read_values(path, (), "sweep"), read_overrides(overrides)
    here = path.parent if "base" not in given else ""
    base = given.pop("base", values.get("base"))
    if not (isinstance(base, str) and base):
        raise ConfigError(f"{path}: base must name a training config, not {shown(base)}")
    if "search" in given:
        values["search"] = given.pop("search")
    if not (isinstance(values.get("search"), dict) and values["search"]):
        raise ConfigError(f"{path}: search must hold keys with lists of values to try")
    training = read_values(os.path.join(here, base), (), "classification")
    for key, value in given.items():
        if key in values["search"]:
            values["search"][key] = _narrowed(key, values["search"][key], value)
        else:
            (values if key in _KEYS else training)[key] = value
    return from_values({**values, "base": to_dict(from_dict(training))})


def from_values(values):
    """A checked :class:`Sweep` of plain values. Raises :class:`ConfigError`."""
    if "together" in values:
        raise ConfigError("settings that change together are given as search.NAME: {value: {...}}")
    sweep = build(Sweep, values, minimum=MINIMUM)
    if not sweep.search:
        raise ConfigError("search={} must hold keys with lists of values to try")
    sweep.together = {key: value for key, value in sweep.search.items() if isinstance(value, dict)}
    for key, settings in sweep.together.items():
        _check_together(sweep, key, settings)
    sweep.search = {
        key: list(value) if key in sweep.together else _choices(sweep.base, key, value)
        for key, value in sweep.search.items()
    }
    for number, chosen in enumerate(sweep.choose()):
        sweep.trial_config(number, chosen)  # what does not go together, before any trial starts
    return sweep


def _narrowed(key, choices, value):
    """What an override makes of a searched key: other values, or some of the named settings."""
    wanted = value if isinstance(value, list) else [value]
    if not isinstance(choices, dict):
        return wanted
    unknown = [name for name in wanted if name not in choices]
    if unknown:
        known = ", ".join(map(str, choices))
        raise ConfigError(f"search.{key} has no {unknown[0]!r}; it has {known}")
    return {name: choices[name] for name in wanted}


def _check_together(sweep, key, settings):
    if key in sweep.base:
        raise ConfigError(
            f"search.{key} is a key of the training config: give a list of values, or the settings "
            "that change together another name"
        )
    if not settings or not all(isinstance(s, dict) and s for s in settings.values()):
        raise ConfigError(f"search.{key}={settings!r} must be like {{name: {{key: value}}}}")
    for name, values in settings.items():
        twice = [k for k in values if k in sweep.search]
        if twice:
            raise ConfigError(f"search.{key}.{name} sets {twice[0]}, which is searched over itself")


def _choices(base, key, values):
    """The values of a searched key as the training config has them."""
    if key == "output_dir":
        raise ConfigError("search.output_dir: every trial has a folder of its own already")
    if not (isinstance(values, list) and values):
        raise ConfigError(f"search.{key}={values!r} must be a list of values")
    typed = [to_dict(from_dict({**base, key: value}))[key] for value in values]
    for position, value in enumerate(typed):
        if value in typed[:position]:
            raise ConfigError(f"search.{key} holds {value!r} twice")
    return typed
