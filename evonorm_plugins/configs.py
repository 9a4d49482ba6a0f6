"""The configs that come with the package, found by name.

A checkout has them in ``configs``, ``detectron_configs`` and ``biggan/configs``; an installed
package has the first two below ``evonorm_plugins/_configs``. Needs no torch: parsers import it.
"""

import difflib
import os
from pathlib import Path

from evonorm_plugins.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
# kind -> its folder in a checkout, what belongs to the kind
_KINDS = {
    "classification": ("configs", "*.yaml"),
    "sweep": ("configs", "*_sweep.yaml"),
    "search": ("configs/search", "*.yaml"),
    "gan": ("biggan/configs", "*.yaml"),
    "detectron2": ("detectron_configs", "**/*.yaml"),
}
KINDS = tuple(_KINDS)


def list_configs(kind: str) -> list[str]:
    """Names of the configs of a kind of ``KINDS``, sorted.

    A name is the file's path within the kind's folder, without ``.yaml``. Files called ``Base-...``
    are left out: others start from them.
    """
    return [name for name in _files(kind) if not name.rpartition("/")[2].startswith("Base-")]


def find_config(name_or_path: str | os.PathLike, kind: str) -> Path:
    """Path of a config file.

    Args:
        name_or_path: the path of a file, which comes first; a name of :func:`list_configs`; the
            last part of such a name, where only one ends in it; or a path as in a checkout, such as
            ``configs/search/B.yaml``, from wherever. Only the first needs its ``.yaml``.
        kind: one of ``KINDS``.

    Raises:
        ConfigError: there is no such file and no such name, or several names end in it.
    """
    given = os.fspath(name_or_path)
    if os.path.isfile(given):
        return Path(given)
    files = _files(kind)
    name = given.removesuffix(".yaml").removeprefix(_KINDS[kind][0] + "/")
    if name in files:
        return files[name]
    ends = [known for known in files if known.endswith(f"/{name}")] if name else []
    if len(ends) == 1:
        return files[ends[0]]
    if ends:
        raise ConfigError(f"config {given!r} may be any of {', '.join(ends)}: name one of these")
    what = "a folder, not a file" if os.path.isdir(given) else f"no file and no {kind} config"
    raise ConfigError(f"{given!r} is {what}; {_known(name, kind)}")


def _files(kind: str) -> dict[str, Path]:
    place, pattern = _KINDS[kind]
    installed = _PACKAGE / "_configs" / place
    folder = installed if installed.is_dir() else _PACKAGE.parent / place
    paths = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.glob(pattern)}
    # Sweeps lie beside the configs they are made of, and are no configs of one training.
    return {n: paths[n] for n in sorted(paths) if n.endswith("_sweep") == (kind == "sweep")}


def _known(name: str, kind: str) -> str:
    names = list_configs(kind)
    shown = {known.rpartition("/")[2].lower(): known for known in reversed(names)}
    last = name.rpartition("/")[2].lower()
    close = difflib.get_close_matches(name, names, n=3) or [
        shown[match] for match in difflib.get_close_matches(last, shown, n=3)
    ]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}"
