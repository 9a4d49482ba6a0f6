"""In what mode a call runs: who looks on, what is recorded, in what dtype it is computed."""

import torch
from torch import Tensor

from evonorm_plugins.torch_private import is_transformed


def is_captured() -> bool:
    """Whether a compiler, an exporter or a tracer looks on.

    A compiler decides itself what to keep, and a traced graph must hold plain operations.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def takes_plain_operations() -> bool:
    """Whether operations must be plain ones: no kernel, no ``torch.autograd.Function``."""
    return is_captured() or is_transformed()


def records_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from ``tensors``."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of statistics and arithmetic: float64 for float64, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
