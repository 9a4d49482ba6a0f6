"""Batches of training images whose order depends on a seed and a position alone.

The images of all epochs form one endless sequence. A rank takes its part of every batch out of it,
so any number of ranks and accumulations sees the same images in the same steps, and a run goes on
anywhere from one number: how many images were used.
"""

import signal
import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from biggan.images import TooSmallError, decode
from evonorm_plugins.data.images import DAMAGED
from evonorm_plugins.errors import DataError
from evonorm_plugins.training.seeds import mixed_seed

# In a row, within one sample: more than chance.
_MAX_IN_A_ROW = 20


class Sequence:
    """The endless sequence of images: epochs, each in an order of its own.

    Args:
        blocks: see :mod:`biggan.sources`; then ``shuffle_shards`` blocks at a time are mixed.
    """

    def __init__(self, length, seed, *, flip, blocks=None, shuffle_shards=8):
        self.length, self.seed, self.flip = length, seed, flip
        self.blocks, self.shuffle_shards = blocks, shuffle_shards
        self.epoch = None

    def __getitem__(self, position):
        """``(image, whether it is flipped)`` at a position of the sequence."""
        epoch, place = divmod(position, self.length)
        if epoch != self.epoch:
            random = np.random.default_rng(mixed_seed(self.seed, epoch))
            self.order = self._order(random)
            self.flips = random.random(self.length) < 0.5
            self.epoch = epoch
        return int(self.order[place]), bool(self.flip and self.flips[place])

    def _order(self, random):
        if self.blocks is None:
            return random.permutation(self.length)
        starts = np.append(self.blocks, self.length)
        shuffled = random.permutation(len(self.blocks))
        parts = []
        for k in range(0, len(shuffled), self.shuffle_shards):
            some = [
                np.arange(starts[b], starts[b + 1]) for b in shuffled[k : k + self.shuffle_shards]
            ]
            parts.append(random.permutation(np.concatenate(some)))
        return np.concatenate(parts)


class RankBatches(Sampler):
    """Endless batches of ``(image, flipped)`` of one rank, from a position of the sequence on."""

    def __init__(self, sequence, position, batch, rank, ranks):
        self.sequence, self.position = sequence, position
        self.batch, self.rank, self.ranks = batch, rank, ranks

    def __iter__(self):
        position = self.position + self.rank * self.batch
        while True:
            yield [self.sequence[position + k] for k in range(self.batch)]
            position += self.ranks * self.batch


class Images(Dataset):
    """``[(image, flipped)]``: ``(uint8 (C, H, W), class, names of damaged images, error)``.

    A damaged image is replaced by the next one of the source. An error is returned, not raised: an
    exception would arrive from a worker process wrapped in a traceback.
    """

    def __init__(self, source, config):
        self.source, self.config = source, config

    def __len__(self):
        return len(self.source.labels)

    def __getitem__(self, key):
        index, flipped = key
        damaged, config = [], self.config
        enlarge = config.small_images == "enlarge"
        for _ in range(_MAX_IN_A_ROW):
            try:
                data = self.source.read(index)
                image = decode(data, config.resolution, config.image_channels, enlarge=enlarge)
            except TooSmallError as error:
                return (
                    None,
                    0,
                    damaged,
                    (
                        f"{self.source.name(index)} is {error}, smaller than resolution="
                        f"{config.resolution}; small_images=enlarge enlarges such images"
                    ),
                )
            except DAMAGED as error:
                damaged.append(f"{self.source.name(index)}: {error}")
                index = (index + 1) % len(self)
                continue
            return (
                image.flip(2) if flipped else image,
                int(self.source.labels[index]),
                damaged,
                None,
            )
        return None, 0, damaged, f"{_MAX_IN_A_ROW} images in a row are damaged: {damaged[0]}, ..."


def _collate(samples):
    images, labels, damaged, errors = zip(*samples, strict=True)
    error = next((e for e in errors if e), None)
    damaged = [name for names in damaged for name in names]
    if error:
        return None, None, damaged, error
    return torch.stack(images), torch.tensor(labels), damaged, None


def _start_worker(_):
    torch.set_num_threads(1)
    # Sent to all processes of a run; the one that trains decides when reading ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainingData:
    """Batches ``(uint8 (B, C, H, W), classes (B,))`` of one rank, endless.

    Args:
        position: number of images that all ranks together have used.
        batch: images of a batch of one rank.

    Raises:
        DataError: an image is too small, or more than ``max_corrupt`` are damaged; each damaged one
            is named on stderr.
    """

    def __init__(self, source, config, *, position, batch, rank=0, ranks=1, pin_memory=False):
        self.source, self.config = source, config
        sequence = Sequence(
            len(source.labels),
            config.seed,
            flip=config.flip,
            blocks=source.blocks,
            shuffle_shards=config.shuffle_shards,
        )
        several = {"prefetch_factor": config.prefetch} if config.workers else {}
        self.loader = DataLoader(
            Images(source, config),
            batch_sampler=RankBatches(sequence, position, batch, rank, ranks),
            num_workers=config.workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            # Its own: a loader seeds its workers with a number that it would draw from torch's.
            generator=torch.Generator(),
            **several,
        )
        self.damaged = set()

    def __iter__(self):
        for images, labels, damaged, error in self.loader:
            for text in damaged:
                self._count(text)
            if error:
                raise DataError(error)
            yield images, labels

    def _count(self, text):
        if text in self.damaged:
            return
        self.damaged.add(text)
        limit = self.config.max_corrupt
        print(f"damaged image {len(self.damaged)} of at most {limit}: {text}", file=sys.stderr)
        if len(self.damaged) > limit:
            raise DataError(
                f"more than max_corrupt={limit} damaged images, the last one {text}; all are named "
                "above"
            )

    def rate(self, seconds=2.0):
        """Images a second that the loader alone gives, measured for about ``seconds``."""
        count, start = 0, None
        for images, _ in self:
            now = time.perf_counter()
            if start is None:
                start = now  # starting the workers is not counted
            else:
                count += len(images)
            # What the workers had read ahead while the first batch was waited for is no rate.
            ahead = self.config.workers * self.config.prefetch * len(images)
            if count > ahead and now - start > seconds:
                return count / (now - start)
        raise AssertionError("the sequence is endless")


def check_source(source, config, checked=64):
    """Look at some images before training starts.

    Raises:
        DataError: as :class:`TrainingData`.
    """
    if config.num_classes not in (None, len(source.classes)):
        raise DataError(
            f"num_classes={config.num_classes}, but the data has {len(source.classes)} classes"
        )
    images, damaged = Images(source, config), 0
    some = np.unique(np.linspace(0, len(images) - 1, checked).astype(int))
    for index in some:
        *_, names, error = images[int(index), False]
        damaged += bool(names)
        if error:
            raise DataError(error)
    if damaged == len(some):
        raise DataError(f"all of {damaged} images looked at are damaged, the last: {names[0]}")
