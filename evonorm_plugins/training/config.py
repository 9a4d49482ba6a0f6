"""Options of a run: one flat dataclass of YAML files, overrides and checkpoints."""

import dataclasses
import difflib
from pathlib import Path

import yaml

from evonorm_plugins.errors import ConfigError

BASE_KEY = "_BASE_"  # a YAML file's: the file it starts from, relative to its own folder


def read_values(path, overrides=()):
    """The values of a YAML file and of ``key=value`` strings, those of strings first.

    Raises:
        ConfigError: what is wrong with the file or the string.
        FileNotFoundError: there is no such file.
    """
    return {**_read(Path(path)), **read_overrides(overrides)}


def read_overrides(overrides):
    """The values of ``key=value`` strings. Raises :class:`ConfigError`."""
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not of the form key=value")
        values[key] = _parse(override, text)
    return values


def build(cls, values):
    """The dataclass ``cls`` of a plain dictionary, every value of its field's type.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(fields)}"
            raise ConfigError(f"there is no option {key!r}{hint}")
    return cls(**{key: _typed(fields[key], value) for key, value in values.items()})


def check_choices(config, choices):
    """Raise :class:`ConfigError` where a key's value is not among ``choices[key]``."""
    for key, allowed in choices.items():
        if getattr(config, key) not in allowed:
            known = ", ".join(map(str, allowed))
            raise ConfigError(f"{key}={getattr(config, key)!r} is not one of {known}")


def check_minimum(config, minimum):
    """Raise :class:`ConfigError` where a number is below ``minimum[key]`` or not finite."""
    for key, lowest in minimum.items():
        value = getattr(config, key)
        if value is not None and not lowest <= value < float("inf"):
            raise ConfigError(f"{key}={value} must be at least {lowest}")


def check_unchanged(path, before, now, keys):
    """Raise :class:`ConfigError` where a checkpoint's config, ``before``, differs in ``keys``."""
    changed = [k for k in keys if before.get(k, now[k]) != now[k]]
    if changed:
        what = ", ".join(f"{k}={before[k]!r} (now {now[k]!r})" for k in changed)
        raise ConfigError(f"{path} was trained with {what}: give the same, or a new folder")


def _read(path, seen=()):
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file {path}")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: {BASE_KEY} leads back to the file itself")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys")
    base = values.pop(BASE_KEY, None)
    start = _read(path.parent / base, (*seen, path.resolve())) if base else {}
    return {**start, **values}


def _parse(override, text):
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of {override!r}") from None


def _typed(field, value):
    """``value`` as the type of the field, so that ``1e-4``, a string to YAML, is a number."""
    key, kind = field.name, getattr(field.type, "__name__", str(field.type))
    item = str if "str" in str(field.type) else int  # of a list
    if value is None and "None" in kind:
        return None
    try:
        if kind.startswith("bool"):
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind.startswith("int"):
            if isinstance(value, bool) or int(value) != float(value):
                raise ValueError
            return int(value)
        if kind.startswith("float"):
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if kind.startswith("list"):
            if isinstance(value, str):
                raise ValueError
            return [item(v) for v in value]
        if kind.startswith("dict"):
            return dict(value)
        return str(value)
    except (TypeError, ValueError):
        wanted = kind.replace("list", f"list of {'names' if item is str else 'integers'}")
        raise ConfigError(f"{key}={value!r} is not {wanted}") from None
