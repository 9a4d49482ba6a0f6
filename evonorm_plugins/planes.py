"""Inputs of any number of spatial dimensions, as the planes that formulas and kernels take."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor


def as_planes(x: Tensor) -> Tensor:
    """``(N, C)``, ``(N, C, L)``, ``(N, C, D, H, W)`` and so on as ``(N, C, 1, P)``; 4-D as it is.

    It is a view of what is dense, contiguous or with the channels last, and then dense in the same
    memory format. A result of that shape is viewed back by ``y.reshape(x.shape)``.

    Raises:
        ValueError: ``x`` has fewer than 2 dimensions.
    """
    dims = x.dim()
    if dims == 4:
        return x
    if dims < 2:
        raise ValueError(f"x of {tuple(x.shape)} is not (N, C) or (N, C, ...)")
    if dims == 2:
        return x[:, :, None, None]
    # Not with a last dimension of 1, whose stride would hide from torch that channels are last.
    return x.flatten(2).unsqueeze(2)


def of_planes(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of ``x`` ``(N, C, H, W)`` take any number of spatial dimensions."""

    @functools.wraps(function)
    def of_any(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if x.dim() == 4:
            return function(x, *arguments, **options)
        return function(as_planes(x), *arguments, **options).reshape(x.shape)

    return of_any
