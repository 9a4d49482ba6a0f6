"""Score generated images against real ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evonorm_plugins.errors import InputError, reason
from evonorm_plugins.metrics.data import ImageSource
from evonorm_plugins.metrics.density_coverage import density_coverage
from evonorm_plugins.metrics.extractor import Extractor
from evonorm_plugins.metrics.features import Pass, Wanted, progress_bar, run_pass, stepped
from evonorm_plugins.metrics.fid import Gaussian, gaussian_distance
from evonorm_plugins.metrics.fid_infinity import check_subsets, fid_infinity
from evonorm_plugins.metrics.inception_score import split_of_each
from evonorm_plugins.metrics.kid import kernel_distance
from evonorm_plugins.metrics.precision_recall import precision_recall
from evonorm_plugins.metrics.protocol import labelled
from evonorm_plugins.metrics.statistics_file import Statistics
from evonorm_plugins.training.ranks import Ranks

METRICS = ("is", "fid", "kid", "prc", "dc", "fd_infinity")
_LOWER_IS_BETTER = ("fid", "kid_mean", "fid_infinity")

Bar = Callable[..., tqdm]  # of progress_bar


@dataclass(frozen=True)
class Options:
    """How scores are computed; the defaults are torch-fidelity's, or the authors'.

    Attributes:
        metrics: some of :data:`METRICS`.
        splits, shuffle, shuffle_seed: of the Inception score; the seed is that of the subsets of
            KID and of FID at infinite N too.
        kid_subsets, kid_subset_size: of KID.
        neighbours: of precision and recall.
        dc_neighbours: of density and coverage.
        fd_smallest, fd_points: of FID at infinite N, see
            :func:`~evonorm_plugins.metrics.fid_infinity.fid_infinity`.
    """

    metrics: tuple = ("is", "fid")
    splits: int = 10
    shuffle: bool = True
    shuffle_seed: int = 2020
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    dc_neighbours: int = 5
    fd_smallest: int = 5000
    fd_points: int = 15

    @property
    def fake_features(self) -> bool:
        """Whether single features of generated images are needed, not their moments alone."""
        return bool({"kid", "prc", "dc", "fd_infinity"} & set(self.metrics))

    @property
    def real_features(self) -> bool:
        """Whether those of real images are."""
        return bool({"kid", "prc", "dc"} & set(self.metrics))

    @property
    def needs_real(self) -> bool:
        return set(self.metrics) != {"is"}

    def check(self, n_fake: int, n_real: int | None) -> None:
        """Raise InputError where there are too few images for what was asked."""
        if "is" in self.metrics and not 1 <= self.splits <= n_fake:
            raise InputError(
                f"an Inception score over {self.splits} splits needs at least as many images, "
                f"there are {n_fake}; --splits makes them fewer"
            )
        counts = [n for n in (n_fake, n_real) if n is not None]
        if "fid" in self.metrics and min(counts) < 2:
            raise InputError(f"FID needs at least 2 images of each set, there are {min(counts)}")
        if "kid" in self.metrics and min(counts) < self.kid_subset_size:
            raise InputError(
                f"KID draws subsets of {self.kid_subset_size} images, one set has {min(counts)}; "
                "--kid-subset-size makes them smaller"
            )
        if "prc" in self.metrics and min(counts) <= self.neighbours:
            raise InputError(
                f"precision and recall with {self.neighbours} neighbours need more images, one set "
                f"has {min(counts)}"
            )
        if "dc" in self.metrics and n_real is not None and n_real <= self.dc_neighbours:
            raise InputError(
                f"density and coverage with {self.dc_neighbours} neighbours need more real images, "
                f"there are {n_real}; --dc-neighbours makes them fewer"
            )
        if "fd_infinity" in self.metrics:
            if n_real is not None and n_real < 2:
                raise InputError(f"FID needs at least 2 images of each set, there are {n_real}")
            try:
                check_subsets(n_fake, self.fd_smallest, self.fd_points)
            except ValueError as error:
                raise InputError(
                    f"--fd-infinity: {error}; --fd-infinity-smallest and --fd-infinity-points "
                    "change them"
                ) from None

    def describe(self) -> dict[str, Any]:
        """What belongs to the protocol; None where a metric was not computed."""
        has = {metric: metric in self.metrics for metric in METRICS}
        seeded = (has["is"] and self.shuffle) or has["kid"] or has["fd_infinity"]
        return {
            "metrics": sorted(self.metrics),
            "splits": self.splits if has["is"] else None,
            "shuffle": self.shuffle if has["is"] else None,
            "shuffle_seed": self.shuffle_seed if seeded else None,
            "kid_subsets": self.kid_subsets if has["kid"] else None,
            "kid_subset_size": self.kid_subset_size if has["kid"] else None,
            "neighbours": self.neighbours if has["prc"] else None,
            "dc_neighbours": self.dc_neighbours if has["dc"] else None,
            "fd_smallest": self.fd_smallest if has["fd_infinity"] else None,
            "fd_points": self.fd_points if has["fd_infinity"] else None,
        }


@dataclass
class Scored:
    """What became of one set of generated images; in the main process, empty in others.

    Attributes:
        scores: numbers by their labelled keys.
        failed: why a metric, by its name in :data:`METRICS`, could not be computed.
        pictures: those asked for.
        seconds: that the pass over the images took.
    """

    scores: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    pictures: dict[int, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def real_statistics(
    source: ImageSource,
    extractor: Extractor,
    *,
    features: bool,
    logits: bool = False,
    pictures: Iterable[int] = (),
    quiet: bool = False,
    **how: Any,
) -> tuple[Statistics, dict[int, torch.Tensor]]:
    """Statistics of real images, and the pictures asked for: ``(Statistics, dict)``.

    In processes other than the main one ``features`` of the result are None.

    Args:
        source: of :mod:`~evonorm_plugins.metrics.data`.
        features: whether to keep single features.
        logits: whether an extractor that gives none ends the pass: generated images will need them.
        how: ``batch_size``, ``workers`` and ``device`` of
            :func:`~evonorm_plugins.metrics.features.run_pass`.
    """
    wanted = Wanted(features=features, logits=logits, pictures=list(pictures))
    bar = progress_bar(quiet)("real", len(source))
    done = run_pass(source, extractor, wanted, bar=bar, **how)
    assert done.moments is not None  # as wanted
    return Statistics(
        done.moments.mean.cpu().numpy(),
        done.moments.covariance().cpu().numpy(),
        done.n,
        extractor.describe(),
        done.features,
    ), done.pictures


def score(
    fake: ImageSource,
    real: Statistics | None,
    extractor: Extractor,
    options: Options,
    *,
    into: Scored | None = None,
    pictures: Iterable[int] = (),
    quiet: bool = False,
    **how: Any,
) -> Scored:
    """Scores of one set of generated images.

    Args:
        fake: source of images.
        real: :class:`~evonorm_plugins.metrics.statistics_file.Statistics`, or None for the
            Inception score alone.
        options: :class:`Options`.
        into: gets every score when it is computed: what there is before an interruption.

    Returns:
        ``into``, or a new one.
    """
    scored = Scored() if into is None else into
    wanted = Wanted(
        moments="fid" in options.metrics,
        splits=_splits(len(fake), options),
        features=options.fake_features,
        pictures=list(pictures),
        size=len(real.mean) if real else None,
    )
    bar = progress_bar(quiet)
    done = run_pass(fake, extractor, wanted, bar=bar("generated", len(fake)), **how)
    scored.seconds = done.seconds
    if not Ranks.current().is_main:
        return scored
    scored.pictures = done.pictures
    for metric in METRICS:
        if metric in options.metrics:
            try:
                found = _COMPUTED[metric](done, real, options, bar)
            # Of numbers, of LAPACK, of too little memory: the other scores can still be had.
            except (ValueError, RuntimeError, MemoryError) as error:
                scored.failed[metric] = reason(error)
                continue
            scored.scores |= {labelled(k, extractor.label): v for k, v in found.items()}
    return scored


def is_singular(n_fake: int, real: Statistics) -> bool:
    """Whether a covariance has no full rank because there are too few images."""
    return min(n_fake, real.n or n_fake) <= len(real.mean)


def _splits(n: int, options: Options) -> np.ndarray | None:
    if "is" not in options.metrics:
        return None
    return split_of_each(n, options.splits, shuffle=options.shuffle, seed=options.shuffle_seed)


def _inception_score(fake: Pass, *_: Any) -> dict[str, float]:
    assert fake.score is not None
    values = fake.score.scores()
    return {
        "inception_score_mean": float(np.mean(values)),
        "inception_score_std": float(np.std(values)),
    }


def _fid(fake: Pass, real: Statistics, *_: Any) -> dict[str, float]:
    moments = fake.moments
    assert moments is not None
    generated = Gaussian(moments.mean.cpu().numpy(), moments.covariance().cpu().numpy())
    singular = is_singular(fake.n, real)
    return {"fid": gaussian_distance(generated, real.gaussian, singular=singular)}


def _kid(fake: Pass, real: Statistics, options: Options, bar: Bar) -> dict[str, float]:
    mean, std = kernel_distance(
        *_features_of_both(fake, real),
        subsets=options.kid_subsets,
        subset_size=options.kid_subset_size,
        seed=options.shuffle_seed,
        progress=lambda it: stepped(it, bar("KID", options.kid_subsets, " subsets")),
    )
    return {"kid_mean": mean, "kid_std": std}


def _precision_recall(fake: Pass, real: Statistics, options: Options, _: Bar) -> dict[str, float]:
    return precision_recall(*_features_of_both(fake, real), neighbours=options.neighbours)


def _density_coverage(fake: Pass, real: Statistics, options: Options, _: Bar) -> dict[str, float]:
    return density_coverage(*_features_of_both(fake, real), neighbours=options.dc_neighbours)


def _fid_infinity(fake: Pass, real: Statistics, options: Options, bar: Bar) -> dict[str, float]:
    assert fake.features is not None
    value = fid_infinity(
        fake.features,
        real.gaussian,
        smallest=options.fd_smallest,
        points=options.fd_points,
        seed=options.shuffle_seed,
        progress=lambda it: stepped(it, bar("FID at infinite N", options.fd_points, " subsets")),
    )
    return {"fid_infinity": value}


_COMPUTED: dict[str, Callable[..., dict[str, float]]] = {
    "is": _inception_score,
    "fid": _fid,
    "kid": _kid,
    "prc": _precision_recall,
    "dc": _density_coverage,
    "fd_infinity": _fid_infinity,
}


def _features_of_both(fake: Pass, real: Statistics) -> tuple[np.ndarray, np.ndarray]:
    assert fake.features is not None
    assert real.features is not None
    return fake.features, real.features


def summary(scores: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """``(median, best)`` of each score over the runs that have it.

    Best is the largest, for distances the smallest; deviations that belong to a mean have no best.
    """
    median, best = {}, {}
    for key in dict.fromkeys(key for s in scores for key in s):
        values = [s[key] for s in scores if key in s]
        median[key] = float(np.median(values))
        name = key.partition("[")[0]
        if not name.endswith("_std"):
            best[key] = min(values) if name in _LOWER_IS_BETTER else max(values)
    return median, best
