"""Mean and covariance of features, one batch at a time, in float64."""

import torch


class Moments:
    """Count, mean and sum of squared deviations of feature vectors.

    Batches are merged as Chan, Golub and LeVeque do (1983): nothing is lost to cancellation and
    memory does not grow with their number.

    Args:
        size: D, numbers in a feature vector.
        device: where sums are kept.
    """

    def __init__(self, size: int, device: str | torch.device = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.deviations = torch.zeros(size, size, dtype=torch.float64, device=device)

    def update(self, features: torch.Tensor) -> None:
        """Add features (B, D)."""
        if len(features):
            features = features.to(self.mean)
            mean = features.mean(0)
            centred = features - mean
            self.deviations.addmm_(centred.T, centred)
            self._shift(len(features), mean)

    def merge(self, other: "Moments") -> None:
        """Add what another one has counted."""
        if other.n:
            self.deviations += other.deviations.to(self.deviations)
            self._shift(other.n, other.mean.to(self.mean))

    def _shift(self, n: int, mean: torch.Tensor) -> None:
        """Move the mean to that of both, whose deviations are in the sum already."""
        total = self.n + n
        delta = mean - self.mean
        self.deviations.addr_(delta, delta, alpha=self.n * n / total)
        self.mean += delta * (n / total)
        self.n = total

    def covariance(self) -> torch.Tensor:
        """(D, D), divided by N - 1.

        Raises:
            ValueError: fewer than 2 vectors.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.n}")
        return self.deviations / (self.n - 1)
