"""Score generated images against real ones."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics.data import ImageSource
from evonorm_plugins.metrics.extractor import Extractor
from evonorm_plugins.metrics.features import Pass, Wanted, progress_bar, run_pass, stepped
from evonorm_plugins.metrics.fid import frechet_distance
from evonorm_plugins.metrics.inception_score import split_of_each
from evonorm_plugins.metrics.kid import kernel_distance
from evonorm_plugins.metrics.precision_recall import precision_recall
from evonorm_plugins.metrics.protocol import labelled
from evonorm_plugins.metrics.statistics_file import Statistics
from evonorm_plugins.training.ranks import Ranks

METRICS = ("is", "fid", "kid", "prc")


@dataclass(frozen=True)
class Options:
    """How scores are computed; the defaults are torch-fidelity's.

    Attributes:
        metrics: some of :data:`METRICS`.
        splits, shuffle, shuffle_seed: of the Inception score; the seed is that of KID too.
        kid_subsets, kid_subset_size: of KID.
        neighbours: of precision and recall.
    """

    metrics: tuple = ("is", "fid")
    splits: int = 10
    shuffle: bool = True
    shuffle_seed: int = 2020
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3

    @property
    def features(self) -> bool:
        """Whether single features are needed, not their moments alone."""
        return bool({"kid", "prc"} & set(self.metrics))

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

    def describe(self) -> dict[str, Any]:
        """What belongs to the protocol; None where a metric was not computed."""
        has = {metric: metric in self.metrics for metric in METRICS}
        seeded = (has["is"] and self.shuffle) or has["kid"]
        return {
            "metrics": sorted(self.metrics),
            "splits": self.splits if has["is"] else None,
            "shuffle": self.shuffle if has["is"] else None,
            "shuffle_seed": self.shuffle_seed if seeded else None,
            "kid_subsets": self.kid_subsets if has["kid"] else None,
            "kid_subset_size": self.kid_subset_size if has["kid"] else None,
            "neighbours": self.neighbours if has["prc"] else None,
        }


def real_statistics(
    source: ImageSource,
    extractor: Extractor,
    *,
    features: bool,
    pictures: Iterable[int] = (),
    quiet: bool = False,
    **how: Any,
) -> tuple[Statistics, dict[int, torch.Tensor]]:
    """Statistics of real images, and the pictures asked for: ``(Statistics, dict)``.

    In processes other than the main one ``features`` of the result are None.

    Args:
        source: of :mod:`~evonorm_plugins.metrics.data`.
        features: whether to keep single features.
        how: ``batch_size``, ``workers`` and ``device`` of
            :func:`~evonorm_plugins.metrics.features.run_pass`.
    """
    wanted = Wanted(features=features, pictures=list(pictures))
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
    pictures: Iterable[int] = (),
    quiet: bool = False,
    **how: Any,
) -> tuple[dict[str, float] | None, dict[int, torch.Tensor], float]:
    """Scores of one set of generated images.

    Args:
        fake: source of images.
        real: :class:`~evonorm_plugins.metrics.statistics_file.Statistics`, or None for the
            Inception score alone.
        options: :class:`Options`.

    Returns:
        ``(scores, pictures, seconds)``; scores None in processes other than the main one.
    """
    wanted = Wanted(
        moments="fid" in options.metrics,
        splits=_splits(len(fake), options),
        features=options.features,
        pictures=list(pictures),
        size=len(real.mean) if real else None,
    )
    bar = progress_bar(quiet)("generated", len(fake))
    done = run_pass(fake, extractor, wanted, bar=bar, **how)
    if not Ranks.current().is_main:
        return None, {}, done.seconds
    with _naming_values():
        bar = partial(progress_bar(quiet), "KID", options.kid_subsets, " subsets")
        scores = compute(done, real, options, progress=lambda it: stepped(it, bar()))
    scores = {labelled(key, extractor.label): value for key, value in scores.items()}
    return scores, done.pictures, done.seconds


def is_singular(n_fake: int, real: Statistics) -> bool:
    """Whether a covariance has no full rank because there are too few images."""
    return min(n_fake, real.n or n_fake) <= len(real.mean)


def _splits(n: int, options: Options) -> np.ndarray | None:
    if "is" not in options.metrics:
        return None
    return split_of_each(n, options.splits, shuffle=options.shuffle, seed=options.shuffle_seed)


def compute(
    fake: Pass,
    real: Statistics | None,
    options: Options,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, float]:
    """Scores from what a pass over the fake images gave and the statistics of the real ones.

    Args:
        fake: with what the metrics need: ``score``, ``moments``, ``features``.
        real: with ``features`` where the metrics need them; None for the Inception score alone.
    """
    scores = {}
    if "is" in options.metrics:
        assert fake.score is not None
        values = fake.score.scores()
        scores["inception_score_mean"] = float(np.mean(values))
        scores["inception_score_std"] = float(np.std(values))
    if "fid" in options.metrics:
        moments = fake.moments
        assert moments is not None
        assert real is not None
        scores["fid"] = frechet_distance(
            moments.mean.cpu().numpy(),
            moments.covariance().cpu().numpy(),
            real.mean,
            real.covariance,
            singular=is_singular(fake.n, real),
        )
    if "kid" in options.metrics:
        scores["kid_mean"], scores["kid_std"] = kernel_distance(
            *_features_of_both(fake, real),
            subsets=options.kid_subsets,
            subset_size=options.kid_subset_size,
            seed=options.shuffle_seed,
            progress=progress,
        )
    if "prc" in options.metrics:
        scores |= precision_recall(*_features_of_both(fake, real), neighbours=options.neighbours)
    return scores


def _features_of_both(fake: Pass, real: Statistics | None) -> tuple[np.ndarray, np.ndarray]:
    assert fake.features is not None
    assert real is not None
    assert real.features is not None
    return fake.features, real.features


@contextlib.contextmanager
def _naming_values() -> Iterator[None]:
    try:
        yield
    except (ValueError, np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        raise InputError(f"scores cannot be computed: {error}") from error


def summary(scores: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """``(median, best)`` of each score over several runs; best is the largest, or smallest.

    Smaller is better for distances; the deviations that belong to a mean have no best.
    """
    median, best = {}, {}
    for key in scores[0]:
        values = [s[key] for s in scores]
        median[key] = float(np.median(values))
        name = key.partition("[")[0]
        if not name.endswith("_std"):
            best[key] = min(values) if name in ("fid", "kid_mean") else max(values)
    return median, best
