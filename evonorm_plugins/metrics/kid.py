"""Kernel Inception distance (Binkowski et al., arXiv 1801.01401)."""

from collections.abc import Callable, Iterable

import numpy as np


def kernel_distance(
    fake: np.ndarray,
    real: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the squared maximum mean discrepancy.

    Unbiased estimate with the kernel ``(x y / D + 1)^3``; subsets are those that torch-fidelity
    draws. Slightly below 0 is possible and means equal distributions.

    Args:
        fake, real: features, (N, D); arrays or memory maps, of which only subsets are read.
        subsets: how many subsets of ``subset_size`` images are drawn from each.
        progress: wraps the iterator over subsets.

    Raises:
        ValueError: fewer images than ``subset_size``.
    """
    if min(len(fake), len(real)) < subset_size or subset_size < 2 or subsets < 1:
        raise ValueError(
            f"KID draws {subsets} subsets of {subset_size} images (at least 2), there are "
            f"{len(fake)} and {len(real)}; --kid-subset-size makes them smaller"
        )
    generator = np.random.RandomState(seed)
    values = []
    for _ in progress(range(subsets)):
        x, y = (
            np.asarray(features[generator.choice(len(features), subset_size, replace=False)])
            for features in (fake, real)
        )
        values.append(_squared_discrepancy(x.astype(np.float64), y.astype(np.float64)))
    return float(np.mean(values)), float(np.std(values))


def _squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    within = sum(k.sum() - np.trace(k) for k in (_kernel(x, x), _kernel(y, y)))
    return within / (n * (n - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
