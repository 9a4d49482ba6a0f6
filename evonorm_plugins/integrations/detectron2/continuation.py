"""A run that goes on from its checkpoint as if it had not been interrupted.

Detectron2 starts its order of images again, with other random numbers. Here both depend on the
config's SEED and on the number of the step alone.
"""

import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from torch.utils.data import DataLoader, Sampler

from evonorm_plugins.training.seeds import mixed_seed


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the random numbers of a step: of what is drawn from images, and of sampled regions."""
    mixed = mixed_seed(seed, step, rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002, whose numbers Detectron2 draws
    torch.manual_seed(mixed)


def skip_batches(loader: object, steps: int) -> bool:
    """Have a loader of Detectron2's begin behind the batches of ``steps`` steps, reading no image.

    Returns:
        Whether it does; not with processes of its own, which have an order among them, and not
        where it is another kind of loader.
    """
    batches = loader.dataset if isinstance(loader, AspectRatioGroupedDataset) else loader
    images = getattr(batches, "dataset", None)
    if not isinstance(batches, DataLoader) or not isinstance(images, ToIterableDataset):
        return False
    if batches.num_workers:
        return False
    grouped = isinstance(loader, AspectRatioGroupedDataset)
    records = images.dataset._dataset  # before they are mapped
    kinds: dict[int, bool] = {}

    def kind(index: int) -> bool:
        if grouped and index not in kinds:
            kinds[index] = records[index]["width"] > records[index]["height"]
        return grouped and kinds[index]

    images.sampler = _Rest(images.sampler, steps, loader.batch_size, kind)  # type: ignore[attr-defined]
    return True


class _Rest(Sampler):
    """What a sampler gives behind so many batches.

    Args:
        sampler: gives the same indices every time, without end.
        steps: batches.
        size: of a batch.
        kind: of an index; a batch is complete when there are ``size`` of a kind.
    """

    def __init__(
        self, sampler: Sampler, steps: int, size: int, kind: Callable[[int], bool]
    ) -> None:
        self.sampler, self.steps, self.size, self.kind = sampler, steps, size, kind

    def __iter__(self) -> Iterator[int]:
        indices, begun, done = iter(self.sampler), ([], []), 0  # type: ignore[var-annotated]
        while done < self.steps:
            index = next(indices)
            batch = begun[self.kind(index)]
            batch.append(index)
            if len(batch) == self.size:
                batch.clear()
                done += 1
        return itertools.chain(*begun, indices)
