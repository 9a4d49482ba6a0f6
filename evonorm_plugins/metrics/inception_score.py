"""Inception score (Salimans et al., arXiv 1606.03498), one batch at a time."""

import numpy as np
import torch


def split_of_each(
    n: int, splits: int = 10, *, shuffle: bool = True, seed: int = 2020
) -> np.ndarray:
    """Which split each of ``n`` images belongs to, (n,) integers.

    Splits are consecutive pieces of a permutation drawn as torch-fidelity draws it. Without the
    shuffle the score of images in the order of their classes is that of a few classes each.

    Raises:
        ValueError: fewer images than splits.
    """
    if splits < 1 or n < splits:
        raise ValueError(f"an Inception score over {splits} splits needs as many images, got {n}")
    order = np.arange(n)
    if shuffle:
        # torch-fidelity's generator: its splits are to be had with no other.
        order = np.random.RandomState(seed).permutation(n)
    which = np.empty(n, np.int64)
    for k in range(splits):
        which[order[k * n // splits : (k + 1) * n // splits]] = k
    return which


class InceptionScore:
    """Sums over the class probabilities of images, for each split.

    Args:
        which: split of each image, from :func:`split_of_each`.
        classes: C, number of logits.
    """

    def __init__(self, which: np.ndarray, classes: int, device: str | torch.device = "cpu") -> None:
        self.which = torch.as_tensor(which)
        splits = int(self.which.max()) + 1
        self.counts = torch.zeros(splits, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(splits, classes, dtype=torch.float64, device=device)
        self.entropies = torch.zeros(splits, dtype=torch.float64, device=device)  # sums of p log p

    def update(self, places: torch.Tensor, logits: torch.Tensor) -> None:
        """Add logits (B, C) of the images at ``places`` (B) of the order that was split."""
        logits = logits.to(self.probabilities)
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        which = self.which[places].to(p.device)
        self.counts.index_add_(0, which, torch.ones_like(p[:, 0]))
        self.probabilities.index_add_(0, which, p)
        # A probability that is 0 in float64 has a logarithm that is not used.
        self.entropies.index_add_(0, which, (p * log_p).nan_to_num().sum(1))

    def sums(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tensors to add up over processes."""
        return self.counts, self.probabilities, self.entropies

    def scores(self) -> np.ndarray:
        """Score of each split, (splits,): exp of the mean divergence from the mean."""
        mean = self.probabilities / self.counts[:, None]
        divergence = self.entropies / self.counts - torch.special.xlogy(mean, mean).sum(1)
        return divergence.exp().cpu().numpy()


def inception_score(
    logits: torch.Tensor, splits: int = 10, *, shuffle: bool = True, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation over splits of logits (N, C).

    Between 1 (every image alike) and C (sure of each image, classes equally often).
    """
    score = InceptionScore(
        split_of_each(len(logits), splits, shuffle=shuffle, seed=seed), logits.shape[1]
    )
    score.update(torch.arange(len(logits)), logits)
    return float(np.mean(score.scores())), float(np.std(score.scores()))
