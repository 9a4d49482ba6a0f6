"""What a number was measured with: recorded beside it, and compared before numbers are."""

import importlib.metadata
import itertools
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from evonorm_plugins.errors import InputError, ProtocolError
from evonorm_plugins.files import replacing

# Below it, the covariance of 2048 features has no full rank and FID is far too high.
ENOUGH_IMAGES = 2048
_PACKAGES = ("torch", "numpy", "pillow")
_GAN_PACKAGES = ("torch-fidelity", "pytorch-fid")
_AP_PACKAGES = ("pycocotools", "hotcoco", "detectron2")
BACKENDS = ("torch-fidelity", "pytorch-fid")  # whose layers and resizing of Inception
PRECISIONS = ("float32", "bfloat16")  # of its arithmetic
NO_STATISTICS = "no batch statistics"
_SAMPLING = ("ema", "mode", "truncation", "classes")  # of a checkpoint


def versions(kind: str) -> dict[str, str | None]:
    """``{package: version}`` of what took part, None for one that is not installed."""
    import evonorm_plugins

    found: dict[str, str | None] = {
        "evonorm_plugins": evonorm_plugins.__version__,
        "python": platform.python_version(),
    }
    for package in (*_PACKAGES, *(_AP_PACKAGES if kind == "ap" else _GAN_PACKAGES)):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def labelled(key: str, label: str) -> str:
    """The key of a score: ``fid``, or ``fid[label]`` where another extractor gave it."""
    return f"{key}[{label}]" if label else key


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of two protocols whose values differ, ``{key: (value, value)}``.

    A generator without batch statistics goes with any mode of those that have them, and two
    fingerprints of a set of images are equal if no number differs by more than 1e-4 of its size:
    GPUs and CPUs round differently. Images that come as files, as real ones do, go with any way of
    sampling a checkpoint.
    """
    wrong = {}
    sampled = a.get("ema") is not None and b.get("ema") is not None
    for key in dict.fromkeys((*a, *b)):
        left, right = a.get(key), b.get(key)
        if key in _SAMPLING and not sampled:
            continue
        if key == "mode" and NO_STATISTICS in (left, right):
            continue
        same = left == right
        if key == "real_fingerprint" and not same:
            same = _are_close(left, right)
        if not same:
            wrong[key] = left, right
    return wrong


def _are_close(left: Any, right: Any) -> bool:
    try:
        return all(math.isclose(x, y, rel_tol=1e-4) for x, y in zip(left, right, strict=True))
    except (TypeError, ValueError):  # not two lists of as many numbers
        return False


def check_same(records: Sequence[dict[str, Any]], paths: Sequence[str | os.PathLike]) -> None:
    """Raise ProtocolError, with what differs, unless all records are comparable."""
    # All pairs: two that each go with a third need not go with each other.
    for (one, here), (other, there) in itertools.combinations(zip(records, paths, strict=True), 2):
        if one["kind"] != other["kind"]:
            raise ProtocolError(
                f"{here} holds {one['kind']} scores, {there} {other['kind']} scores; "
                "they go into two tables"
            )
        wrong = differences(one["protocol"], other["protocol"])
        if wrong:
            listed = "; ".join(f"{k} {a!r} and {b!r}" for k, (a, b) in wrong.items())
            raise ProtocolError(f"{here} and {there} were measured in different ways: {listed}")


def check_counts(counts: Mapping[str, int | None], strict: bool) -> list[str]:
    """Warnings about sets of images that are too small, ``{name: N or None}``.

    Raises:
        InputError: there are some, and ``strict`` is set.
    """
    warnings = []
    for name, n in counts.items():
        if n is None:
            warnings.append(f"the number of {name} images is not known")
        elif n < ENOUGH_IMAGES:
            warnings.append(
                f"{n} {name} images are fewer than {ENOUGH_IMAGES}: the scores are strongly biased "
                "and go with no others"
            )
    if warnings and strict:
        raise InputError(f"--strict: {'; '.join(warnings)}")
    return warnings


def write_json(path: str | os.PathLike, record: object) -> None:
    """Write to a temporary name, then rename."""
    with replacing(path) as partial:
        partial.write_text(as_json(record) + "\n", encoding="utf-8")


def as_json(record: object) -> str:
    """JSON text; numbers that are not finite are null, which JSON has no others for."""
    return json.dumps(_finite(record), indent=2, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
