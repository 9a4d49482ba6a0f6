"""Fréchet distance between two Gaussians (Heusel et al., arXiv 1706.08500)."""

import numpy as np


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
        singular: True for covariances of no more images than features. There torch-fidelity and
            pytorch-fid add up the square roots of some thousand eigenvalues that are rounding
            errors of zero, which lowers FID by 1e-7 to 1e-4 of itself. With True they are added up
            here too, by torch-fidelity's formula, so that the number equals theirs.

    Returns:
        float, at least 0 up to rounding; squared units of the features.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, or a matrix
            that is no covariance.
    """
    means = [np.asarray(m, np.float64) for m in (mean1, mean2)]
    covariances = [np.asarray(c, np.float64) for c in (covariance1, covariance2)]
    _check(means, covariances)
    difference = means[0] - means[1]
    traces = sum(np.trace(c) for c in covariances)
    cross = (_trace_of_product if singular else _trace_of_factors)(*covariances)
    return float(difference @ difference + traces - 2 * cross)


def _check(means: list[np.ndarray], covariances: list[np.ndarray]) -> None:
    size = means[0].shape
    if means[1].shape != size or any(c.shape != size * 2 for c in covariances) or len(size) != 1:
        shapes = ", ".join(str(a.shape) for a in (*means, *covariances))
        raise ValueError(f"means must be (D,) and covariances (D, D) of one D, got {shapes}")
    if not all(np.isfinite(a).all() for a in (*means, *covariances)):
        raise ValueError("means and covariances must be finite")
    for c in covariances:
        if not np.allclose(c, c.T, rtol=1e-6, atol=1e-9 * np.abs(c).max()):
            raise ValueError("a covariance must be symmetric")


def _trace_of_factors(covariance1: np.ndarray, covariance2: np.ndarray) -> float:
    factors = [_factor(c) for c in (covariance1, covariance2)]
    return np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()


def _trace_of_product(covariance1: np.ndarray, covariance2: np.ndarray) -> float:
    values = np.linalg.eigvals(covariance1 @ covariance2)
    return np.sqrt(values.astype(np.complex128)).real.sum()


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A, (D, rank), with ``A A^T`` the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    largest = np.abs(values).max()
    # Files of other tools may hold covariances that were rounded to float32.
    if values.min() < -1e-4 * largest:
        raise ValueError(f"a covariance has the negative eigenvalue {values.min():.3g}")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(values[kept])
