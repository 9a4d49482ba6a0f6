"""Statistics of real images, kept: our own files, pytorch-fid's npz, torch-fidelity's cache.

Ours is an npz that pytorch-fid reads too: ``mu`` (D,) and ``sigma`` (D, D) in float64, ``n``, the
protocol as JSON and, if asked for, the features (N, D) in float32 that KID and precision need.
"""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evonorm_plugins.errors import InputError, ProtocolError
from evonorm_plugins.files import replacing
from evonorm_plugins.metrics.fid import Gaussian

_CACHE_SUFFIXES = (".pt", ".pth")
_ROWS = 4096  # features that are looked at at a time


@dataclass
class Statistics:
    """Mean (D,) and covariance (D, D) of features of ``n`` images, None if the file says nothing.

    ``protocol`` is how they were measured, None if unknown; ``features`` (N, D) or None.
    """

    mean: np.ndarray
    covariance: np.ndarray
    n: int | None
    protocol: dict | None
    features: np.ndarray | None = None

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Both as what distances are between; see its errors."""
        return Gaussian(self.mean, self.covariance)

    def fingerprint(self) -> list[float]:
        """Two numbers that tell sets of images apart: mean feature and mean variance."""
        return [float(self.mean.mean()), float(np.trace(self.covariance) / len(self.mean))]


def is_statistics(path: str | os.PathLike) -> bool:
    """Whether a file holds statistics rather than images."""
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() in _CACHE_SUFFIXES:
        return True
    if path.suffix.lower() != ".npz":
        return False
    try:
        with np.load(path, allow_pickle=False) as content:
            return "mu" in content and "sigma" in content
    except Exception:  # no zip file at all; what is said about it then is said of images
        return False


def is_ours(path: str | os.PathLike) -> bool:
    """Whether :func:`save_statistics` wrote a file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {"mu", "sigma", "n", "protocol"} <= set(content)
    except Exception:  # a file of another kind can fail anywhere
        return False


def save_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Write a file that :func:`load_statistics` reads.

    Raises:
        InputError, NoSpaceError: see :func:`evonorm_plugins.files.replacing`.
    """
    arrays: dict[str, Any] = {"mu": statistics.mean, "sigma": statistics.covariance}
    arrays["n"] = np.array(statistics.n, np.int64)
    arrays["protocol"] = np.array(json.dumps(statistics.protocol))
    if statistics.features is not None:
        arrays["features"] = statistics.features
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def load_statistics(path: str | os.PathLike) -> Statistics:
    """Statistics from a file of ours, of pytorch-fid, or of torch-fidelity's cache.

    Raises:
        InputError: it cannot be read, or holds other things.
    """
    path = Path(path)
    read = _read_cache if path.suffix.lower() in _CACHE_SUFFIXES else _read_npz
    try:
        statistics = read(path)
    except InputError:
        raise
    except Exception as error:  # a file of another kind can fail anywhere in these readers
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no statistics that can be read: {reason}") from None
    for name, values in (("mu", statistics.mean), ("sigma", statistics.covariance)):
        _check_finite(path, name, values)
    try:
        statistics.gaussian  # noqa: B018, which checks them
    except ValueError as error:
        raise InputError(f"{path}: mu and sigma are no Gaussian: {error}") from None
    if statistics.features is not None:
        _check_features(path, statistics)
    return statistics


def _check_features(path: Path, statistics: Statistics) -> None:
    features, size = statistics.features, len(statistics.mean)
    assert features is not None
    if features.ndim != 2 or features.shape[1] != size or features.dtype.kind != "f":
        raise InputError(
            f"{path}: features must be floating point (N, {size}), as mu is ({size},), they are "
            f"{features.dtype} {features.shape}"
        )
    if statistics.n not in (None, len(features)):
        raise InputError(f"{path}: n is {statistics.n}, and there are {len(features)} features")
    _check_finite(path, "features", features)


def _check_finite(path: Path, name: str, values: np.ndarray) -> None:
    for start in range(0, len(values), _ROWS):
        finite = np.isfinite(values[start : start + _ROWS])
        if not finite.all():
            place = np.argwhere(~finite)[0]
            place[0] += start
            at, value = ", ".join(map(str, place)), values[tuple(place)]
            raise InputError(f"{path}: {name}[{at}] is {value}, not finite")


def _read_npz(path: Path) -> Statistics:
    with np.load(path, allow_pickle=False) as content:
        return Statistics(
            np.asarray(content["mu"], np.float64),
            np.asarray(content["sigma"], np.float64),
            int(content["n"]) if "n" in content else None,
            json.loads(str(content["protocol"])) if "protocol" in content else None,
            content.get("features"),
        )


def _read_cache(path: Path) -> Statistics:
    """``NAME-...-stat-fid-2048.pt`` (arrays mu, sigma) or ``NAME-...-features-2048.pt``."""
    # What NumPy's arrays are rebuilt by; its module has moved between versions.
    allowed: list = [np.ndarray, np.dtype, np.zeros(0).__reduce__()[0]]
    allowed += [type(np.dtype(t)) for t in (np.float32, np.float64)]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor) and content.dim() == 2:
        features = content.double()
        return Statistics(
            features.mean(0).numpy(),
            np.cov(features.numpy(), rowvar=False),
            len(features),
            None,
            content.float().numpy(),
        )
    if isinstance(content, dict) and {"mu", "sigma"} <= set(content):
        mean, covariance = (np.asarray(content[k], np.float64) for k in ("mu", "sigma"))
        return Statistics(mean, covariance, None, None)
    raise InputError(
        f"{path} is no cache of torch-fidelity: a dict of mu and sigma, or features (N, D)"
    )


def check_same_extractor(
    statistics: Statistics, described: Mapping[str, Any], path: str | os.PathLike
) -> None:
    """Refuse statistics that were measured in another way.

    Args:
        described: what the extractor in use says of itself.

    Raises:
        ProtocolError: names what differs.
    """
    if statistics.protocol is None:
        return
    keys = ("extractor", "extractor_sha256", "backend", "resize", "precision", "fast")
    wrong = [k for k in keys if statistics.protocol.get(k) != described.get(k)]
    if wrong:
        raise ProtocolError(
            f"{path} was measured in another way: "
            + "; ".join(f"{k} {statistics.protocol.get(k)!r}, here {described[k]!r}" for k in wrong)
        )
