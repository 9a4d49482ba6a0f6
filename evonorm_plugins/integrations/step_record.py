"""Steps of training: the loss of each, and what it cost."""

import os
import time
from typing import Any

import numpy as np
import torch

from evonorm_plugins.training.memory import peak_memory


class StepRecord:
    """Total loss and seconds of every step, in a CSV file, and what training cost.

    Args:
        path: appended to if it is there.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path
        self.seconds: list[float] = []

    def open(self) -> None:
        new = not os.path.exists(self.path)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115, closed in close()
        if new:
            self._file.write("iteration,total_loss,seconds\n")

    def start(self) -> None:
        self._start = time.perf_counter()

    def stop(self, iteration: int, total_loss: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self._file.write(f"{iteration},{total_loss:.6g},{self.seconds[-1]:.4f}\n")

    def close(self) -> None:
        self._file.close()

    def summary(self) -> dict[str, Any]:
        """``{"seconds_per_iteration": median, "peak_memory_mib": ..., "peak_memory_of": ...}``."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return {
            "seconds_per_iteration": float(np.median(self.seconds)) if self.seconds else None,
            "peak_memory_mib": peak_memory(device) / 2**20,
            "peak_memory_of": "cuda" if device.type == "cuda" else "process",
        }
