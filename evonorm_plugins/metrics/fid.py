"""Fréchet distance between two Gaussians (Heusel et al., arXiv 1706.08500)."""

import numpy as np


def frechet_distance(mean1, covariance1, mean2, covariance2):
    """``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``.

    The last trace is the sum of the singular values of ``A1^T A2`` where ``C = A A^T``; the factors
    A come from eigenvalues of the symmetric C, those within rounding of zero left out. A square
    root of the unsymmetric product, as SciPy's ``sqrtm`` gives it, has imaginary parts when there
    are fewer images than features, and takes ten times as long.

    Args:
        mean1, mean2: (D,), float64.
        covariance1, covariance2: (D, D), symmetric, float64.

    Returns:
        float, at least 0 up to rounding; squared units of the features.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, or a matrix
            that is no covariance.
    """
    means = [np.asarray(m, np.float64) for m in (mean1, mean2)]
    covariances = [np.asarray(c, np.float64) for c in (covariance1, covariance2)]
    size = means[0].shape
    if means[1].shape != size or any(c.shape != size * 2 for c in covariances) or len(size) != 1:
        shapes = ", ".join(str(a.shape) for a in (*means, *covariances))
        raise ValueError(f"means must be (D,) and covariances (D, D) of one D, got {shapes}")
    if not all(np.isfinite(a).all() for a in (*means, *covariances)):
        raise ValueError("means and covariances must be finite")
    difference = means[0] - means[1]
    factors = [_factor(c) for c in covariances]
    cross = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    traces = sum(np.trace(c) for c in covariances)
    return float(difference @ difference + traces - 2 * cross)


def _factor(covariance):
    """A, (D, rank), with ``A A^T`` the covariance."""
    if not np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * np.abs(covariance).max()):
        raise ValueError("a covariance must be symmetric")
    values, vectors = np.linalg.eigh(covariance)
    rounding = len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0)
    # Files of other tools may hold covariances that were rounded to float32.
    if values.min(initial=0) < -1e-4 * np.abs(values).max(initial=0):
        raise ValueError(f"a covariance has the negative eigenvalue {values.min():.3g}")
    kept = values > rounding
    return vectors[:, kept] * np.sqrt(values[kept])
