"""The images that a config names, for training and for validation.

The images of an update, their crops and flips depend on the seed and the update's number alone, not
on how ranks and accumulations divide them; so a run also goes on anywhere.
"""

import dataclasses

import torch

from evonorm_plugins.data import augment
from evonorm_plugins.data.in_memory import check_fits, decoded
from evonorm_plugins.data.loader import Loader, RankBatches, Samples
from evonorm_plugins.data.open import open_source
from evonorm_plugins.errors import DataError
from evonorm_plugins.training.seeds import generator_of, mixed_seed

# Mean and deviation of ImageNet's channels, of values from 0 to 1, as torchvision's models use.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESOLUTION = 224
# Of the short edge that an image is scaled to for validation, the crop in its middle keeps so much.
CROP_SHARE = 224 / 256
# Larger images are read anew in every epoch, unless the config says otherwise.
MAX_SIDE = 64


@dataclasses.dataclass
class Data:
    """Training and validation data of a run.

    ``train.batches(step)`` gives a rank's ``(uint8 images, labels)`` from an update on, without
    end; ``val_batches()`` gives its part of the validation images. Models take
    ``(images / 255 - mean) / std``.
    """

    classes: list
    train: object
    val_batches: object
    mean: tuple
    std: tuple
    val_length: int


def open_data(config, rank=0, ranks=1):
    """What ``config`` names.

    Raises:
        DataError: nothing is there, it is of no known kind, a class has no images, images do not
            decode, validation has other classes, all images are held out, or there are fewer images
            than an update takes.
    """
    train = open_source(config.data, key="data", train=True)
    val = train
    if not config.holdout:
        val = open_source(config.val_data, key="val_data", train=False)
    if train.classes != val.classes:
        other = sorted(set(train.classes) ^ set(val.classes)) or ["in another order"]
        raise DataError(
            f"data={config.data} and val_data={config.val_data} have different classes: "
            f"{', '.join(other[:5])}"
        )
    kept, held = _split(train, val, config)
    chosen = kept[_some(len(kept), config.max_train_images, config.seed)]
    held = held[_some(len(held), config.max_val_images, config.seed)]
    update = config.batch_size * config.accumulations * ranks
    if len(chosen) < update:
        raise DataError(
            f"{len(chosen)} training images are fewer than one update takes: batch_size="
            f"{config.batch_size} x accumulations={config.accumulations} x {ranks} ranks"
        )
    in_memory = config.reader == "memory"
    if config.reader == "auto":
        in_memory = max(train.image(0).size) <= MAX_SIDE
    make = _memory_data if in_memory else _files_data
    return make(train, val, chosen, held, config, rank, ranks)


def _memory_data(train, val, chosen, held, config, rank, ranks):
    if config.augment == "randaugment":
        raise DataError("augment=randaugment is for images read from files: reader=files")
    held = held[rank::ranks]
    images = decoded(train)
    val_images = (images if val is train else decoded(val))[held]
    val_labels = torch.as_tensor(val.labels)[held]
    images, labels = images[chosen], torch.as_tensor(train.labels)[chosen]
    size = config.resolution or min(images.shape[2:])
    val_size = config.val_resolution or min(val_images.shape[2:])
    if val_size > min(val_images.shape[2:]):
        raise DataError(
            f"val_resolution={val_size} is more than {config.val_data or config.data} has"
        )
    mean, std = augment.channel_moments(images)

    def val_batches():
        for start in range(0, len(val_labels), config.val_batch_size):
            part = slice(start, start + config.val_batch_size)
            yield augment.centre_crop(val_images[part], val_size), val_labels[part]

    return Data(
        classes=train.classes,
        train=MemoryTrainingData(images, labels, size, config, rank=rank, ranks=ranks),
        val_batches=val_batches,
        mean=mean,
        std=std,
        val_length=len(val_labels),
    )


def _files_data(train, val, chosen, held, config, rank, ranks):
    if config.augment == "affine":
        raise DataError("augment=affine is for images in memory: reader=memory")
    size = config.resolution or RESOLUTION
    val_size = config.val_resolution or size
    resize = config.val_resize or round(val_size / CROP_SHARE)
    if resize < val_size:
        raise DataError(f"val_resize={resize} is less than val_resolution={val_size}")
    check_fits("an image scaled for validation", (3, resize, resize), "a lower val_resize")
    ahead = config.batch_size * (config.workers * config.prefetch + 1)
    shape = (ahead, 3, size, size)
    check_fits("the batches of a rank and those read ahead", shape, "a lower resolution")
    transform = augment.middle(round(size / CROP_SHARE), size)
    if config.augment != "none":
        strength = config.randaugment_ops, config.randaugment_magnitude
        transform = augment.random_crop(
            size,
            config.crop_scale,
            flip=config.flip,
            randaugment=strength if config.augment == "randaugment" else None,
        )
    own = [(place, 0) for place in range(rank, len(held), ranks)]
    size = config.val_batch_size
    loader = Loader(
        _samples(val, held, augment.middle(resize, val_size), config),
        [own[k : k + size] for k in range(0, len(own), size)],
        config,
    )
    return Data(
        classes=train.classes,
        train=FilesTrainingData(_samples(train, chosen, transform, config), config, rank, ranks),
        val_batches=loader.__iter__,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        val_length=len(own),
    )


def _samples(source, chosen, transform, config):
    make = augment.Seeded(transform)
    return Samples(source, make, chosen=chosen, replacements=config.max_corrupt)


def _some(length, count, seed):
    """Numbers of ``count`` images, in rising order, that depend on the seed alone."""
    if count is None or count >= length:
        return torch.arange(length)
    return torch.randperm(length, generator=generator_of(seed, 3))[:count].sort().values


def _split(train, val, config):
    """Numbers of the images of each source to choose from, in rising order."""
    if not config.holdout:
        return torch.arange(len(train)), torch.arange(len(val))
    count = len(train)
    held = _held_out(config.holdout, count)
    if not held:
        raise DataError(
            f"holdout={config.holdout} of the {count} images of {config.data} is none to validate "
            "on"
        )
    if held >= count:
        raise DataError(
            f"holdout={config.holdout} leaves none of the {count} images of {config.data} to train "
            "on"
        )
    labels = torch.as_tensor(train.labels)
    order = torch.randperm(count, generator=generator_of(config.seed, 4))
    order = order[labels[order].argsort(stable=True)]  # class by class, at random within
    sizes = torch.bincount(labels)
    place = torch.arange(count) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    # Of every class those go first whose place in it, as a share of it, is lowest.
    share = (place + 0.5).double() / sizes.repeat_interleave(sizes)
    order = order[share.argsort(stable=True)]
    return order[held:].sort().values, order[:held].sort().values


def _held_out(holdout, count):
    """How many of ``count`` images a number, or a share such as ``10%``, is."""
    return round(float(holdout[:-1]) / 100 * count) if isinstance(holdout, str) else holdout


# ---- images in memory: cropped and flipped a batch at a time ----


class MemoryTrainingData:
    """Batches for training out of images in memory.

    Args:
        images, labels: uint8 ``(N, 3, H, W)`` and int64 ``(N,)``.
        size: side of the crops.
        config: :class:`evonorm_plugins.classification.config.Config`.

    Raises:
        DataError: the padded images are smaller than the crops.
    """

    def __init__(self, images, labels, size, config, *, rank=0, ranks=1):
        self.images, self.labels, self.size, self.config = images, labels, size, config
        self.rank, self.ranks = rank, ranks
        self.update = config.batch_size * config.accumulations * ranks
        self.padding = config.padding if config.augment == "standard" else 0
        height, width = images.shape[2:]
        if size > min(height, width) + 2 * self.padding:
            raise DataError(
                f"resolution={size}, but the images are {width}x{height}, with a padding of "
                f"{self.padding} on each side"
            )
        shape = (config.batch_size, 3, size, size)
        # Twice: the pixels, and the places that they are gathered from, of 8 bytes each.
        check_fits("the crops of a batch", (9, *shape), "a lower padding or resolution")

    def __len__(self):
        return len(self.labels)

    def batches(self, step):
        """``(uint8 images, labels)`` of this rank from an update on, without end."""
        c, per_epoch, order, epoch = self.config, len(self) // self.update, None, None
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(len(self), generator=generator_of(c.seed, 1, epoch))
            start = step % per_epoch * self.update
            chosen, crops = order[start : start + self.update], self._draw(step)
            affine = self._draw_affine(step)
            for k in range(c.accumulations):
                first = (k * self.ranks + self.rank) * c.batch_size
                part = slice(first, first + c.batch_size)
                images, labels = self.images[chosen[part]], self.labels[chosen[part]]
                if affine is not None:
                    images = augment.warp(images.float(), affine[part]).round_().byte()
                yield augment.crop(images, self.size, *(n[part] for n in crops)), labels
            step += 1

    def _draw(self, step):
        """Top and left corner and whether it is flipped, each ``(update,)``, of every image."""
        random, n = generator_of(self.config.seed, 2, step), self.update
        room = [s + 2 * self.padding - self.size for s in self.images.shape[2:]]
        if self.config.augment in ("none", "affine"):
            return [torch.full((n,), r // 2) for r in room] + [torch.zeros(n, dtype=torch.bool)]
        corners = [torch.randint(r + 1, (n,), generator=random) - self.padding for r in room]
        return [*corners, (torch.rand(n, generator=random) < 0.5) & self.config.flip]

    def _draw_affine(self, step):
        """What :func:`augment.warp` takes for every image of an update, or None."""
        c = self.config
        if c.augment != "affine":
            return None
        sizes = {"rotation": c.rotation, "zoom": c.zoom, "shift": c.shift, "flip": c.flip}
        return augment.random_affine(self.update, generator_of(c.seed, 2, step), **sizes)


# ---- images of any size: read from their files in every epoch by worker processes ----


class FilesTrainingData:
    """Batches for training out of :class:`~evonorm_plugins.data.loader.Samples`."""

    def __init__(self, samples, config, rank, ranks):
        self.samples, self.config, self.rank, self.ranks = samples, config, rank, ranks

    def __len__(self):
        return len(self.samples)

    def batches(self, step):
        """``(uint8 images, labels)`` of this rank from an update on, without end."""
        c = self.config
        sequence = Sequence(len(self), c.batch_size * c.accumulations * self.ranks, c.seed)
        position = step * sequence.update
        keys = RankBatches(sequence, position, c.batch_size, self.rank, self.ranks)
        yield from Loader(self.samples, keys, c)


class Sequence:
    """The endless sequence of ``(image, seed)``: epochs of whole updates, each in its own order."""

    def __init__(self, length, update, seed):
        self.length, self.update, self.seed, self.epoch = length, update, seed, None

    def __getitem__(self, position):
        step, place = divmod(position, self.update)
        epoch, of_epoch = divmod(step, self.length // self.update)
        if epoch != self.epoch:
            random = generator_of(self.seed, 1, epoch)
            self.order, self.epoch = torch.randperm(self.length, generator=random), epoch
        index = int(self.order[of_epoch * self.update + place])
        return index, mixed_seed(self.seed, 2, step, place)
