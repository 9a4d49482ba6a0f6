"""Distances between many feature vectors: blocks of them, so that memory does not grow with N.

Blocks are read from arrays or memory maps (N, D).
"""

from collections.abc import Iterator

import numpy as np
import torch


def cut(
    features: np.ndarray, rows: int, dtype: torch.dtype = torch.float32
) -> Iterator[torch.Tensor]:
    """Blocks of at most ``rows`` vectors, (rows, D)."""
    for start in range(0, len(features), rows):
        block = np.array(features[start : start + rows])  # a map is read-only
        yield torch.from_numpy(block).to(dtype)


def radii(block: torch.Tensor, others: np.ndarray, neighbours: int, columns: int) -> torch.Tensor:
    """Distance of each vector of ``block``, some of ``others``, to the k-th nearest other one.

    Args:
        block: (B, D); distances are computed in its dtype.
        others: (N, D), with the vectors of the block among them.
        neighbours: k; the vector itself is not counted.
        columns: how many of ``others`` are compared at a time.

    Returns:
        (B,).
    """
    nearest = block.new_empty(len(block), 0)
    for other in cut(others, columns, block.dtype):
        distances = torch.cat([nearest, torch.cdist(block, other)], 1)
        nearest = distances.topk(min(neighbours + 1, distances.shape[1]), largest=False).values
    return nearest.max(1).values
