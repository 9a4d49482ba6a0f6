"""Density and coverage of generated images (Naeem et al., arXiv 2002.09797)."""

import numpy as np
import torch

from evonorm_plugins.metrics.neighbours import cut, radii


def density_coverage(
    fake: np.ndarray,
    real: np.ndarray,
    *,
    neighbours: int = 5,
    rows: int = 1250,
    columns: int = 10000,
) -> dict[str, float]:
    """How densely real images are surrounded by generated ones, and how many of them are at all.

    Around each real image lies a ball that reaches to its k-th nearest real neighbour. Density is
    the number of balls that a generated image lies in, the mean over generated images, divided by
    k: 1 is expected of equal distributions, and more is possible. Coverage is the share of balls
    that hold a generated image. One real image that is far from all others makes recall of nearly
    everything; here it is one ball of many.

    Distances are float64, and an image on the edge of a ball is outside, as in the authors' package
    ``prdc``.

    Args:
        fake, real: features, (N, D) arrays or memory maps.
        neighbours: k.
        rows, columns: of a block of distances, which are all that is in memory at a time.

    Returns:
        dict with ``density`` (from 0) and ``coverage_fraction`` (0 to 1).

    Raises:
        ValueError: no more real images than neighbours, or no generated ones.
    """
    if len(real) <= neighbours or neighbours < 1 or not len(fake):
        raise ValueError(
            f"density and coverage with {neighbours} neighbours need more real images than that, "
            f"got {len(real)}, and generated ones, got {len(fake)}"
        )
    inside = covered = 0
    for block in cut(real, rows, torch.float64):
        limits = radii(block, real, neighbours, columns)[:, None]
        holds = torch.zeros(len(block), dtype=torch.bool)
        for other in cut(fake, columns, torch.float64):
            within = torch.cdist(block, other) < limits
            inside += int(within.sum())
            holds |= within.any(1)
        covered += int(holds.sum())
    return {
        "density": inside / (neighbours * len(fake)),
        "coverage_fraction": covered / len(real),
    }
