"""Batches of images, read by worker processes."""

import signal
import sys

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from evonorm_plugins.errors import BrokenImageError, DataError, InputError


class Samples(Dataset):
    """``[(place, how)]``: ``(image, label, messages about damaged images, error)``.

    A damaged image is replaced by the next one that may be used. What is wrong is returned, not
    raised: an exception would arrive from a worker process wrapped in a traceback. The image is
    None where there is none.

    Args:
        source: :class:`evonorm_plugins.data.source.Source`.
        make: ``make(image, how)`` gives the uint8 tensor of a ``PIL.Image.Image``; of a DataError
            that it raises the message is put behind the image's name.
        chosen: numbers of the images that may be used, among which a place counts; None for all.
        replacements: how many damaged images in a row are replaced.
        read: ``mode`` and ``draft`` of :meth:`~evonorm_plugins.data.source.Source.image`.
    """

    def __init__(self, source, make, *, chosen=None, replacements=0, **read):
        self.source, self.make, self.read = source, make, read
        self.chosen = range(len(source)) if chosen is None else chosen
        self.attempts = min(replacements + 1, len(self.chosen))

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, key):
        place, how = key
        damaged = []
        for k in range(self.attempts):
            index = int(self.chosen[(place + k) % len(self.chosen)])
            try:
                image = self.source.image(index, **self.read)
            except BrokenImageError as error:
                damaged.append(str(error))
                continue
            except InputError as error:
                return None, 0, damaged, error
            try:
                return self.make(image, how), int(self.source.labels[index]), damaged, None
            except DataError as error:
                return None, 0, damaged, DataError(f"{self.source.name(index)} {error}")
        return None, 0, damaged, None


class RankBatches(Sampler):
    """Endless batches of one rank out of an endless sequence, from a position on.

    A rank takes its part of every batch, so any number of ranks and accumulations sees the same
    entries in the same order, and a run goes on anywhere from one number.

    Args:
        sequence: gives the entry at a position.
        position: number of entries that all ranks together have used.
        batch: entries of a batch of one rank.
    """

    def __init__(self, sequence, position, batch, rank, ranks):
        self.sequence, self.position = sequence, position
        self.batch, self.rank, self.ranks = batch, rank, ranks

    def __iter__(self):
        position = self.position + self.rank * self.batch
        while True:
            yield [self.sequence[position + k] for k in range(self.batch)]
            position += self.ranks * self.batch


class Loader:
    """``(uint8 images (B, C, H, W), labels (B,))`` of :class:`Samples`, batch for batch.

    Args:
        batches: lists of the samples' keys.
        config: has ``workers``, worker processes; ``prefetch``, batches that each of them reads
            ahead; ``max_corrupt``, how many damaged images are replaced, each named on stderr once.
        pin: whether batches are in pinned memory; None where there is a GPU.

    Raises:
        DataError: more are damaged, or the samples say that something else is wrong.
    """

    def __init__(self, samples, batches, config, pin=None):
        self.max_corrupt, self.damaged = config.max_corrupt, set()
        self.batches = data_loader(samples, batches, config.workers, config.prefetch, pin)

    def __iter__(self):
        for images, labels, damaged, error in self.batches:
            for text in damaged:
                self._count(text)
            if error:
                raise error
            if isinstance(images, list):
                raise DataError(f"all images are damaged, the last: {damaged[-1]}")
            yield images, labels

    def _count(self, text):
        if text in self.damaged:
            return
        self.damaged.add(text)
        limit = self.max_corrupt
        print(f"damaged image {len(self.damaged)} of at most {limit}: {text}", file=sys.stderr)
        if len(self.damaged) > limit:
            raise DataError(
                f"more than max_corrupt={limit} damaged images, the last one {text}; all are named "
                f"above; where so many may be replaced, raise max_corrupt={limit}"
            )


def data_loader(samples, batches, workers=0, prefetch=2, pin=None):
    """A ``DataLoader`` of ``(images, labels, damaged, error)``, batch for batch.

    ``images`` are one tensor, or a list where sizes differ or one is None; ``damaged`` and
    ``error`` are those of all samples, and the first.
    """
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available() if pin is None else pin,
        # Its own: a loader seeds its workers with a number that it would draw from torch's.
        generator=torch.Generator(),
    )


def _collate(samples):
    images, labels, damaged, errors = zip(*samples, strict=True)
    shapes = {None if image is None else image.shape for image in images}
    together = torch.stack(images) if len(shapes) == 1 and None not in shapes else list(images)
    error = next((e for e in errors if e is not None), None)
    return together, torch.tensor(labels), [text for texts in damaged for text in texts], error


def start_worker(_):
    """What a process that reads images does first."""
    torch.set_num_threads(1)
    # Sent to all processes of a run; the main one decides when reading ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
