"""FID extrapolated to infinitely many generated images (Chong & Forsyth, arXiv 1911.07023)."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from evonorm_plugins.metrics.fid import Gaussian
from evonorm_plugins.metrics.moments import Moments

_ROWS = 4096  # features that are read at a time


def fid_infinity(
    fake: np.ndarray,
    real: Gaussian,
    *,
    smallest: int = 5000,
    points: int = 15,
    seed: int = 2020,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> float:
    """The FID that infinitely many generated images would have.

    FID of N images is too high by nearly c / N, where c depends on the generator: it cannot be
    compared between generators at any N. A straight line is fitted to the FIDs of random subsets
    of ``points`` sizes, from ``smallest`` to all images, over 1 / N; this is where it is at 0. Each
    subset holds those before it, so that an image is counted once. The bias of the real images' own
    number stays, and is the same for every generator.

    The line is straight where N is well above the number of features.

    Args:
        fake: features, (N, D), an array or a memory map.
        real: the real images' Gaussian.
        smallest: images of the smallest subset; the authors' is 5,000 of 50,000.
        points: number of subsets.
        seed: of the subsets.
        progress: wraps the iterator over the sizes of subsets.

    Returns:
        float; slightly below 0 is possible and means equal distributions.

    Raises:
        ValueError: see :func:`check_subsets`.
    """
    sizes = check_subsets(len(fake), smallest, points)
    order = np.random.default_rng(seed).permutation(len(fake))
    moments, values = Moments(fake.shape[1]), []
    for size in progress(sizes):
        rows = np.sort(order[moments.n : size])
        for start in range(0, len(rows), _ROWS):
            moments.update(torch.from_numpy(np.asarray(fake[rows[start : start + _ROWS]])))
        values.append(_distance(moments.mean.numpy(), moments.covariance().numpy(), real))
    return float(np.polyfit(1 / np.asarray(sizes, np.float64), values, 1)[1])


def _distance(mean: np.ndarray, covariance: np.ndarray, real: Gaussian) -> float:
    """The Fréchet distance to 1e-10 of the traces, by the eigenvalues of one symmetric matrix.

    The covariance needs no factor of its own, and fifteen of them would take minutes.
    """
    product = real.factor.T @ covariance @ real.factor
    cross = np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum()
    difference = mean - real.mean
    traces = np.trace(covariance) + np.trace(real.covariance)
    return float(difference @ difference + traces - 2 * cross)


def check_subsets(n: int, smallest: int, points: int) -> list[int]:
    """Sizes of ``points`` subsets of ``n`` images, evenly spaced from ``smallest`` to ``n``.

    Raises:
        ValueError: a line through two different sizes of at least 2 images is not to be had.
    """
    sizes = np.linspace(smallest, n, points).astype(int).tolist() if points > 1 else []
    if smallest < 2 or smallest >= n or len(sizes) < 2:
        raise ValueError(
            f"FID at infinite N is a line through subsets of {smallest} (at least 2) to all images "
            f"at {points} (at least 2) sizes, and there are {n} images"
        )
    return sizes
