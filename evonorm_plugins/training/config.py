"""Options of a run: one flat dataclass of YAML files, overrides and checkpoints.

A training declares a dataclass whose fields are of the types ``bool``, ``int``, ``float``, ``str``,
``list`` (of integers), ``list[str]``, ``dict``, ``int | str`` (a number, or a share of all such as
``10%``), or one of these ``| None``, each with a default, and two dictionaries beside it:
``CHOICES``, the allowed values of a key, and ``MINIMUM``, the lowest number. Then ::

    config = build(Config, read_values(path, overrides, "gan"), CHOICES, MINIMUM)

is what a file and ``key=value`` strings of a command line say, checked. Everything that is wrong is
a :class:`~evonorm_plugins.errors.ConfigError` of one line. A file is plain YAML; its key ``_BASE_``
names another one to start from.
"""

import dataclasses
import difflib

import yaml

from evonorm_plugins.configs import find_config
from evonorm_plugins.errors import ConfigError, shown
from evonorm_plugins.training.seeds import SEEDS, check_seed

BASE_KEY = "_BASE_"  # a YAML file's: the file it starts from, relative to its own folder


def read_values(path, overrides=(), kind="classification"):
    """The values of a YAML file and of ``key=value`` strings, those of strings first.

    Args:
        path, kind: as :func:`evonorm_plugins.configs.find_config` takes them.

    Raises:
        ConfigError: what is wrong with the file or the string.
    """
    return {**_read(find_config(path, kind)), **read_overrides(overrides)}


def read_overrides(overrides):
    """The values of ``key=value`` strings. Raises :class:`ConfigError`."""
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not (equals and key):
            raise ConfigError(f"{override!r} is not of the form key=value")
        values[key] = _parse(override, text)
    return values


def build(cls, values, choices=None, minimum=None):
    """The dataclass ``cls`` of a plain dictionary, every value of its field's type.

    Args:
        choices, minimum: as :func:`check_choices` and :func:`check_minimum` take them.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            if not isinstance(key, str):
                raise ConfigError(f"there is no option {shown(key)}; the name of one is text")
            close = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(fields)}"
            raise ConfigError(f"there is no option {shown(key)}{hint}")
    config = cls(**{key: _typed(fields[key], value) for key, value in values.items()})
    check_choices(config, choices or {})
    check_minimum(config, minimum or {})
    return config


def to_dict(config):
    """The plain values of a dataclass, for YAML files, checkpoints and stores."""
    return dataclasses.asdict(config)


def check_choices(config, choices):
    """Raise :class:`ConfigError` where a key's value is not among ``choices[key]``."""
    for key, allowed in choices.items():
        if getattr(config, key) not in allowed:
            known = ", ".join(map(str, allowed))
            raise ConfigError(f"{key}={shown(getattr(config, key))} is not one of {known}")


def check_minimum(config, minimum):
    """Raise :class:`ConfigError` where a number is below ``minimum[key]`` or not finite.

    A key ``seed``, or one that ends so, has a highest value, too: beyond it seeds would be equal.
    """
    for key, lowest in minimum.items():
        value = getattr(config, key)
        if isinstance(value, str):  # a share: checked where it was read
            continue
        if value is not None and not lowest <= value < float("inf"):
            raise ConfigError(f"{key}={value} must be at least {lowest}")
        if key.endswith("seed"):
            check_seed(value, f"{key}=")


def check_below_one(config, keys):
    """Raise :class:`ConfigError` where a number is 1 or more."""
    for key in keys:
        if getattr(config, key) >= 1:
            raise ConfigError(f"{key}={getattr(config, key)} must be below 1")


def check_shares(config, keys):
    """Raise :class:`ConfigError` where a number is above 1."""
    for key in keys:
        if getattr(config, key) > 1:
            raise ConfigError(f"{key}={getattr(config, key)} is a share, at most 1")


def check_unchanged(path, before, now, keys):
    """Raise :class:`ConfigError` where a checkpoint's config, ``before``, differs in ``keys``."""
    changed = [k for k in keys if before.get(k, now[k]) != now[k]]
    if changed:
        what = ", ".join(f"{k}={before[k]!r} (now {now[k]!r})" for k in changed)
        raise ConfigError(f"{path} was trained with {what}: give the same, or a new folder")


def _read(path, seen=()):
    if path.resolve() in seen:
        raise ConfigError(f"{path}: {BASE_KEY} leads back to the file itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except _NOT_YAML as error:
        raise ConfigError(f"{path} is not YAML: {_reason(error)}") from None
    if values is None:
        raise ConfigError(f"{path} is empty: a config has lines like key: value")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys, but {shown(values)}")
    if BASE_KEY not in values:
        return values
    base = values.pop(BASE_KEY)
    if not (isinstance(base, str) and base):
        raise ConfigError(f"{path}: {BASE_KEY}={shown(base)} is not the name of a file")
    start = path.parent / base
    if not start.is_file():
        raise ConfigError(f"{path}: {BASE_KEY}={base}: there is no config file {start}")
    return {**_read(start, (*seen, path.resolve())), **values}


# Values that look like dates or numbers and are none are ValueErrors of the YAML library.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _reason(error):
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _parse(override, text):
    try:
        return yaml.safe_load(text) if text else ""
    except _NOT_YAML:
        raise ConfigError(f"cannot read the value of {shown(override)}") from None


def _typed(field, value):
    """``value`` as the type of the field, so that ``1e-4``, a string to YAML, is a number."""
    key, kind = field.name, getattr(field.type, "__name__", str(field.type))
    kind = str(field.type) if kind in ("Union", "UnionType") else kind  # names of Python 3.14
    names = "str" in str(field.type)  # of a list
    if value is None and "None" in kind:
        return None
    read = next(reader for start, reader in _READERS.items() if kind.startswith(start))
    try:
        return [(_str if names else _int)(v) for v in read(value)] if read is _list else read(value)
    except (TypeError, ValueError, OverflowError):
        wanted = kind.replace("list", f"list of {'names' if names else 'integers'}")
        wanted = wanted.replace("int | str", "a number, or a share of all between 0% and 100%")
        raise ConfigError(f"{key}={shown(value)} is not {wanted}") from None


def _bool(value):
    return _of(bool, value)


def _int(value):
    if isinstance(value, bool) or int(value) != float(value) or abs(int(value)) >= SEEDS:
        raise ValueError
    return int(value)


def _int_or_share(value):
    if not (isinstance(value, str) and value.endswith("%")):
        return _int(value)
    if not 0 < float(value[:-1]) < 100:
        raise ValueError
    return value.replace(" ", "")


def _float(value):
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _list(value):
    return _of((list, tuple), value)


def _dict(value):
    return _of(dict, value)


def _str(value):
    # A name may look like a number, or a date, to YAML.
    if value is None or isinstance(value, bool | list | dict):
        raise ValueError
    return str(value)


def _of(kind, value):
    if not isinstance(value, kind):
        raise ValueError
    return value


# The beginning of a type's name -> what reads it.
_READERS = {
    "bool": _bool,
    "int | str": _int_or_share,
    "int": _int,
    "float": _float,
    "list": _list,
    "dict": _dict,
    "str": _str,
}
