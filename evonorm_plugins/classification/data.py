"""The images that a config names, for training and for validation."""

import dataclasses
import glob
import io
import os

import numpy as np
import torch
from PIL import Image

from evonorm_plugins.classification.memory import (
    MAX_SIDE,
    Cifar10Source,
    MemoryTrainingData,
    centre_crop,
    decoded,
)
from evonorm_plugins.data.images import DAMAGED
from evonorm_plugins.data.sources import FolderSource, ZipSource
from evonorm_plugins.errors import DataError
from evonorm_plugins.training.seeds import generator_of

# Mean and deviation of ImageNet's channels, of values from 0 to 1, as torchvision's models use.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
    train = _open(config.data, "data", train=True)
    val = train if config.holdout else _open(config.val_data, "val_data", train=False)
    if train.classes != val.classes:
        other = sorted(set(train.classes) ^ set(val.classes)) or ["in another order"]
        raise DataError(
            f"data={config.data} and val_data={config.val_data} have different classes: "
            f"{', '.join(other[:5])}"
        )
    kept, held = _split(train, val, config)
    chosen = kept[_some(len(kept), config.max_train_images, config.seed)]
    update = config.batch_size * config.accumulations * ranks
    if len(chosen) < update:
        raise DataError(
            f"{len(chosen)} training images are fewer than one update takes: batch_size="
            f"{config.batch_size} x accumulations={config.accumulations} x {ranks} ranks"
        )
    val_chosen = held[_some(len(held), config.max_val_images, config.seed)][rank::ranks]
    if _in_memory(train, config):
        return _memory_data(train, val, chosen, val_chosen, config, rank, ranks)
    from evonorm_plugins.classification.files import files_data

    return files_data(train, val, chosen, val_chosen, config, rank, ranks)


def _memory_data(train, val, chosen, val_chosen, config, rank, ranks):
    images = _images(train, config.data)
    val_images = images if val is train else _images(val, config.val_data)
    images, labels = images[chosen], torch.as_tensor(train.labels)[chosen]
    val_images = val_images[val_chosen]
    val_labels = torch.as_tensor(val.labels)[val_chosen]
    if config.augment == "randaugment":
        raise DataError("augment=randaugment is for images read from files: reader=files")
    size = config.resolution or min(images.shape[2:])
    val_size = config.val_resolution or min(val_images.shape[2:])
    if val_size > min(val_images.shape[2:]):
        raise DataError(
            f"val_resolution={val_size} is more than {config.val_data or config.data} has"
        )
    mean, std = _moments(images)

    def val_batches():
        for start in range(0, len(val_labels), config.val_batch_size):
            part = slice(start, start + config.val_batch_size)
            yield centre_crop(val_images[part], val_size), val_labels[part]

    return Data(
        classes=train.classes,
        train=MemoryTrainingData(images, labels, size, config, rank=rank, ranks=ranks),
        val_batches=val_batches,
        mean=mean,
        std=std,
        val_length=len(val_labels),
    )


def _open(path, key, *, train):
    if not path:
        raise DataError(f"no images are given: {key}=PATH, a folder or a .zip of class folders")
    if os.path.isdir(path):
        if Cifar10Source.is_at(path):
            return Cifar10Source(path, train=train)
        return FolderSource(path)
    if not os.path.isfile(path):
        raise DataError(f"{key}={path}: there is no such folder or file{_near(path)}")
    if not path.lower().endswith(".zip"):
        raise DataError(f"{key}={path}: neither a folder nor a .zip of class folders")
    return ZipSource(path)


def _near(path):
    found = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(path) or "."), "*.zip")))
    return f"; there is {', '.join(found[:5])}" if found else ""


def _in_memory(source, config):
    if isinstance(source, Cifar10Source):
        if config.reader == "files":
            raise DataError("reader=files needs image files; this CIFAR-10 is in pickled batches")
        return True
    if config.reader != "auto":
        return config.reader == "memory"
    try:
        return max(Image.open(io.BytesIO(source.read(0))).size) <= MAX_SIDE
    except DAMAGED as error:
        raise DataError(f"{source.name(0)} cannot be read: {error}") from None


def _images(source, path):
    return source.images if isinstance(source, Cifar10Source) else decoded(source, path)


def _some(length, count, seed):
    """Numbers of ``count`` images, in rising order, that depend on the seed alone."""
    if count is None or count >= length:
        return torch.arange(length)
    return torch.randperm(length, generator=generator_of(seed, 3))[:count].sort().values


def _split(train, val, config):
    """Numbers of the images of each source to choose from, in rising order."""
    if not config.holdout:
        return torch.arange(len(train.labels)), torch.arange(len(val.labels))
    count = len(train.labels)
    if config.holdout >= count:
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
    return order[config.holdout :].sort().values, order[: config.holdout].sort().values


def _moments(images):
    """Mean and deviation of every channel, of values from 0 to 1."""
    levels = np.arange(256) / 255
    counts = [torch.bincount(images[:, c].flatten().int(), minlength=256) for c in range(3)]
    shares = [(n / n.sum()).double().numpy() for n in counts]
    means = [float(s @ levels) for s in shares]
    deviations = [float(s @ (levels - m) ** 2) ** 0.5 for s, m in zip(shares, means, strict=True)]
    # Images of one colour have none.
    return tuple(means), tuple(d if d > 1e-3 else 1.0 for d in deviations)
