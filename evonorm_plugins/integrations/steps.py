"""Steps of training: what each cost, and what went wrong where a loss is not finite."""

import contextlib
import os
import time

import numpy as np
import torch

from evonorm_plugins.training.memory import peak_memory


def first_non_finite(model, *inputs):
    """Say what first turns non-finite: a parameter, or a layer's output when a batch runs again.

    Args:
        model: a detection model in training mode.
        inputs: of the model, for that batch.
    """
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return f"The parameter {name} is not finite"
    found = []

    def check(name):
        def hook(module, inputs, output):
            tensors = [t for t in _tensors(output) if t.is_floating_point()]
            if not found and any(not torch.isfinite(t).all() for t in tensors):
                found.append((name, type(module).__name__))

        return hook

    modules = [(n, m) for n, m in model.named_modules() if n]
    handles = [m.register_forward_hook(check(n)) for n, m in modules]
    try:
        with torch.no_grad(), contextlib.suppress(FloatingPointError):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return "The first layer with a non-finite output is {} ({})".format(*found[0])
    return "No layer's output is non-finite when the batch runs again"


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return []


class StepRecord:
    """Total loss and seconds of every step, in a CSV file, and what training cost.

    Args:
        path: appended to if it is there.
    """

    def __init__(self, path):
        self.path = path
        self.seconds = []

    def open(self):
        new = not os.path.exists(self.path)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115, closed in close()
        if new:
            self._file.write("iteration,total_loss,seconds\n")

    def start(self):
        self._start = time.perf_counter()

    def stop(self, iteration, total_loss):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self._file.write(f"{iteration},{total_loss:.6g},{self.seconds[-1]:.4f}\n")

    def close(self):
        self._file.close()

    def summary(self):
        """``{"seconds_per_iteration": median, "peak_memory_mib": ..., "peak_memory_of": ...}``."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return {
            "seconds_per_iteration": float(np.median(self.seconds)) if self.seconds else None,
            "peak_memory_mib": peak_memory(device) / 2**20,
            "peak_memory_of": "cuda" if device.type == "cuda" else "process",
        }
