"""Fréchet distance between two Gaussians (Heusel et al., arXiv 1706.08500)."""

import functools

import numpy as np


class Gaussian:
    """A mean (D,) and a covariance (D, D) that belong together, in float64.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, or a matrix
            that is not symmetric.
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean = np.asarray(mean, np.float64)
        self.covariance = c = np.asarray(covariance, np.float64)
        if self.mean.ndim != 1 or c.shape != self.mean.shape * 2:
            raise ValueError(
                f"a mean must be (D,) and its covariance (D, D) of one D, got {self.mean.shape} "
                f"and {c.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(c).all()):
            raise ValueError("means and covariances must be finite")
        if not np.allclose(c, c.T, rtol=1e-6, atol=1e-9 * np.abs(c).max(initial=0)):
            raise ValueError("a covariance must be symmetric")

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """A, (D, rank), with ``A A^T`` the covariance; computed once.

        Raises:
            ValueError: a negative eigenvalue, which no covariance has.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        largest = np.abs(values).max()
        # Files of other tools may hold covariances that were rounded to float32.
        if values.min() < -1e-4 * largest:
            raise ValueError(f"a covariance has the negative eigenvalue {values.min():.3g}")
        kept = values > len(values) * np.finfo(np.float64).eps * largest
        return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(
    mean1: np.ndarray,
    covariance1: np.ndarray,
    mean2: np.ndarray,
    covariance2: np.ndarray,
    *,
    singular: bool = False,
) -> float:
    """``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``.

    The last trace is the sum of the singular values of ``A1^T A2`` where ``C = A A^T``; the factors
    A come from eigenvalues of the symmetric C, those within rounding of zero left out. That is
    accurate to 1e-15 of the traces and needs no square root of an unsymmetric matrix, which has
    imaginary parts and takes ten times as long.

    Args:
        mean1, mean2: (D,), float64.
        covariance1, covariance2: (D, D), symmetric, float64.
        singular: see :func:`gaussian_distance`.

    Returns:
        float, at least 0 up to rounding; squared units of the features.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, or a matrix
            that is no covariance.
    """
    return gaussian_distance(
        Gaussian(mean1, covariance1), Gaussian(mean2, covariance2), singular=singular
    )


def gaussian_distance(a: Gaussian, b: Gaussian, *, singular: bool = False) -> float:
    """:func:`frechet_distance` of two :class:`Gaussian`, whose factors are kept for the next one.

    Args:
        singular: True for covariances of no more images than features. There torch-fidelity and
            pytorch-fid add up the square roots of some thousand eigenvalues that are rounding
            errors of zero, which lowers FID by 1e-7 to 1e-4 of itself. With True they are added up
            here too, by torch-fidelity's formula, so that the number equals theirs.

    Raises:
        ValueError: they are not of one D, or a matrix is no covariance.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"Gaussians must be of one D, got {len(a.mean)} and {len(b.mean)}")
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    if singular:
        cross = _trace_of_product(a.covariance, b.covariance)
    else:
        cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    return float(difference @ difference + traces - 2 * cross)


def _trace_of_product(covariance1: np.ndarray, covariance2: np.ndarray) -> float:
    values = np.linalg.eigvals(covariance1 @ covariance2)
    return np.sqrt(values.astype(np.complex128)).real.sum()
