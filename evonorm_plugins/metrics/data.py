"""Sets of images, batch for batch, for a pass that extracts features.

Batch k goes to process ``k % processes``, so that the batches, and with them the features, do not
depend on the number of processes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from evonorm_plugins.data.decode import to_tensor
from evonorm_plugins.data.loader import Samples, data_loader
from evonorm_plugins.data.open import open_images
from evonorm_plugins.errors import BrokenImageError, InputError, first

Images = torch.Tensor | list[torch.Tensor]  # uint8 (B, 3, H, W), or (3, H, W) each


class ImageSource(Protocol):
    """What a pass takes images from."""

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str: ...  # for messages

    def batches(
        self,
        size: int,
        *,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> Iterable[tuple[list[int], Images]]: ...


class ImageSet:
    """The images of a folder, zip, npz or npy file, or some of them.

    Args and errors: :func:`evonorm_plugins.data.open.open_images`'s.
    """

    def __init__(self, path: str | os.PathLike, float_range: Sequence[float] | None = None) -> None:
        self.source = open_images(path, float_range)
        self.chosen = np.arange(len(self.source))
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        return self.source.name(self.chosen[index])

    def describe(self) -> dict[str, Any]:
        described = {"path": str(self.source.path), "broken_files_skipped": len(self.skipped)}
        return described | self.source.describe()

    def choose(self, indices: Sequence[int] | np.ndarray) -> None:
        """Keep the images at ``indices``, which must rise."""
        self.chosen = self.chosen[np.asarray(indices, int)]

    def drop_broken(
        self, workers: int = 0, progress: Callable[[Iterable], Iterable] = iter
    ) -> list[str]:
        """Read every image, leave out those that cannot be, return their messages."""
        results = []
        for _, _, damaged, error in progress(self._loader(_groups(len(self), 1), workers)):
            if error:
                raise error
            results.append(damaged)
        self.skipped = [message for damaged in results for message in damaged]
        self.choose([k for k, damaged in enumerate(results) if not damaged])
        if not len(self):
            raise InputError(
                f"{self.source.path}: none of {len(results)} images can be read: "
                f"{first(self.skipped, 2)}"
            )
        return self.skipped

    def batches(
        self,
        size: int,
        *,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> Iterator[tuple[list[int], Images]]:
        """Yield ``(indices, images)``: a tensor (B, 3, H, W), a list where sizes differ.

        Raises:
            BrokenImageError: names the first image that cannot be read.
        """
        groups = _groups(len(self), size)[process::processes]
        loader = self._loader(groups, workers, pin)
        for indices, (images, _, damaged, error) in zip(groups, loader, strict=True):
            if error:
                raise error
            if damaged:
                raise BrokenImageError(f"{damaged[0]}; --skip-broken leaves out such files")
            yield indices, images

    def _loader(self, groups: list[list[int]], workers: int, pin: bool = False) -> Iterable:
        workers = 0 if self.source.sequential else min(workers, len(groups))
        samples = Samples(self.source, _as_it_is, chosen=self.chosen)
        keys = [[(k, None) for k in group] for group in groups]
        return data_loader(samples, keys, workers, pin=pin)


def _groups(n: int, size: int) -> list[list[int]]:
    return [list(range(k, min(k + size, n))) for k in range(0, n, size)]


def _as_it_is(image: np.ndarray, _: object) -> torch.Tensor:
    return to_tensor(image)
