"""Precision and recall of generated images (Kynkäänniemi et al., arXiv 1904.06991)."""

import numpy as np
import torch

from evonorm_plugins.metrics.neighbours import cut, radii


def precision_recall(
    fake: np.ndarray,
    real: np.ndarray,
    *,
    neighbours: int = 3,
    rows: int = 2500,
    columns: int = 10000,
) -> dict[str, float]:
    """Shares of images that lie among the other set's.

    An image lies among a set if it is no farther from one of its images than that image from its
    k-th nearest neighbour. Precision is the share of fake images among the real ones, recall the
    share of real ones among the fake. Distances are float32 as in torch-fidelity; they are computed
    in blocks, so that memory does not grow with the number of images.

    Args:
        fake, real: features, (N, D) float32 arrays or memory maps.
        neighbours: k.

    Returns:
        dict with ``precision_fraction``, ``recall_fraction``, ``f_score_fraction``.

    Raises:
        ValueError: no more images than neighbours.
    """
    if min(len(fake), len(real)) <= neighbours or neighbours < 1:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more images than that, "
            f"got {len(fake)} and {len(real)}"
        )
    precision = _share_among(fake, real, neighbours, rows, columns)
    recall = _share_among(real, fake, neighbours, rows, columns)
    return {
        "precision_fraction": precision,
        "recall_fraction": recall,
        "f_score_fraction": 2 * precision * recall / max(1e-5, precision + recall),
    }


def _share_among(
    queries: np.ndarray, others: np.ndarray, neighbours: int, rows: int, columns: int
) -> float:
    limits = torch.cat([radii(block, others, neighbours, columns) for block in cut(others, rows)])
    inside = 0
    for block in cut(queries, rows):
        hit = torch.zeros(len(block), dtype=torch.bool)
        for k, other in enumerate(cut(others, columns)):
            reach = limits[k * columns : k * columns + len(other)]
            hit |= (torch.cdist(block, other) <= reach).any(1)
        inside += int(hit.sum())
    return inside / len(queries)
