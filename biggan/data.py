"""Batches of training images whose order depends on a seed and a position alone.

The images of all epochs form one endless sequence, out of which
:class:`~evonorm_plugins.data.loader.RankBatches` takes a rank's part.
"""

import dataclasses
import time

import numpy as np
from PIL import Image

from evonorm_plugins.data.decode import to_tensor
from evonorm_plugins.data.in_memory import check_fits
from evonorm_plugins.data.loader import Loader, RankBatches, Samples
from evonorm_plugins.data.open import open_source
from evonorm_plugins.errors import DataError
from evonorm_plugins.training.seeds import mixed_seed


class Sequence:
    """The endless sequence of ``(image, whether it is flipped)``: epochs, each in its own order.

    Args:
        blocks: of the source; then ``shuffle_shards`` blocks at a time are mixed.
    """

    def __init__(self, length, seed, *, flip, blocks=None, shuffle_shards=8):
        self.length, self.seed, self.flip = length, seed, flip
        self.blocks, self.shuffle_shards = blocks, shuffle_shards
        self.epoch = None

    def __getitem__(self, position):
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


class MiddleSquare:
    """``(image, flipped)`` to uint8 ``(C, resolution, resolution)``: the middle, by area.

    Args:
        enlarge: whether a smaller image may be enlarged, bilinearly; a DataError otherwise.
    """

    def __init__(self, resolution, *, enlarge=False):
        self.resolution, self.enlarge = resolution, enlarge

    def __call__(self, image, flipped):
        resolution, (width, height) = self.resolution, image.size
        side = min(width, height)
        if side < resolution and not self.enlarge:
            raise DataError(
                f"is {width}x{height}, smaller than resolution={resolution}; "
                "small_images=enlarge enlarges such images"
            )
        if (width, height) != (resolution, resolution):
            left, top = (width - side) // 2, (height - side) // 2
            method = Image.Resampling.BOX if side >= resolution else Image.Resampling.BILINEAR
            box = (left, top, left + side, top + side)
            image = image.resize((resolution, resolution), method, box=box)
        tensor = to_tensor(image)
        return tensor.flip(2) if flipped else tensor


def samples(source, config):
    """:class:`~evonorm_plugins.data.loader.Samples` of a source, as a config wants them.

    A JPEG is decoded at down to twice the resolution, so that the resampling by area decides what
    the result looks like.
    """
    return Samples(
        source,
        MiddleSquare(config.resolution, enlarge=config.small_images == "enlarge"),
        replacements=config.max_corrupt,
        mode="L" if config.image_channels == 1 else "RGB",
        draft=2 * config.resolution,
    )


def some_images(source, config, numbers, batch):
    """Images of a source by number, not flipped: uint8 ``(B, C, H, W)``, batch for batch.

    Raises:
        DataError: as :class:`TrainingData`.
    """
    keys = [(int(i), False) for i in numbers]
    batches = [keys[k : k + batch] for k in range(0, len(keys), batch)]
    for images, _ in Loader(samples(source, config), batches, config):
        yield images


class TrainingImages:
    """At most ``n`` training images as the discriminator sees them, evenly spaced in their order.

    A source of :mod:`evonorm_plugins.metrics.data`.

    Args:
        source: :class:`evonorm_plugins.data.source.Source`.
        config: its ``resolution``, ``image_channels`` and ``small_images`` say what they become.
    """

    def __init__(self, source, config, n):
        self.source, self.config = source, config
        self.numbers = np.linspace(0, len(source) - 1, min(n, len(source))).astype(int)

    def __len__(self):
        return len(self.numbers)

    def name(self, index):
        return self.source.name(self.numbers[index])

    def describe(self):
        """What the record of a measurement says of them."""
        return {"path": self.config.data, "as_trained_at_px": self.config.resolution}

    def batches(self, size, *, process=0, processes=1, workers=0, pin=False):
        """Yield ``(indices, images)``, images uint8 (B, 3, H, W)."""
        groups = [list(range(k, min(k + size, len(self)))) for k in range(0, len(self), size)]
        groups = groups[process::processes]
        own = self.numbers[[i for group in groups for i in group]]
        batches = some_images(self.source, self.config, own, size)
        for group, images in zip(groups, batches, strict=True):
            yield group, images.expand(-1, 3, -1, -1)


def open_training_images(path, config, n, workers):
    """:class:`TrainingImages` at ``path``, as a training with this config would see them.

    Raises:
        DataError: they are not there, or not fit for it.
    """
    config = dataclasses.replace(config, data=str(path), workers=workers, num_classes=None)
    source = open_source(config.data, key="--real", resolution=config.resolution)
    check_source(source, config)
    return TrainingImages(source, config, n)


class TrainingData(Loader):
    """Batches ``(uint8 (B, C, H, W), classes (B,))`` of one rank, endless.

    Args:
        position: number of images that all ranks together have used.
        batch: images of a batch of one rank.

    Raises:
        DataError: an image is too small, or more than ``max_corrupt`` are damaged; each damaged one
            is named on stderr.
    """

    def __init__(self, source, config, *, position, batch, rank=0, ranks=1, pin_memory=False):
        self.images = len(source)
        self.ahead = config.workers * config.prefetch * batch
        shape = (self.ahead + batch, config.image_channels, *[config.resolution] * 2)
        check_fits("the batches of a rank and those read ahead", shape, "a lower batch_size")
        sequence = Sequence(
            len(source),
            config.seed,
            flip=config.flip,
            blocks=source.blocks,
            shuffle_shards=config.shuffle_shards,
        )
        batches = RankBatches(sequence, position, batch, rank, ranks)
        super().__init__(samples(source, config), batches, config, pin_memory)

    def rate(self, seconds=2.0):
        """Images a second that the loader alone gives, measured for about ``seconds``, or over as
        many images as there are where that is sooner.
        """
        count, start = 0, None
        for images, _ in self:
            now = time.perf_counter()
            if start is None:
                start = now  # starting the workers is not counted
            else:
                count += len(images)
            # What the workers had read ahead while the first batch was waited for is no rate.
            enough = now - start > seconds or count >= self.images
            if count > self.ahead and enough:
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
    images, damaged = samples(source, config), 0
    some = np.unique(np.linspace(0, len(images) - 1, checked).astype(int))
    for index in some:
        *_, names, error = images[int(index), False]
        damaged += bool(names)
        if error:
            raise error
    if damaged == len(some):
        raise DataError(f"all of {damaged} images looked at are damaged, the last: {names[0]}")
