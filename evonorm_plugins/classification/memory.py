"""Small images, all in memory: decoded once, cropped and flipped a batch at a time."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evonorm_plugins.data.images import DAMAGED
from evonorm_plugins.errors import DataError, NoSpaceError
from evonorm_plugins.training.checkpoint import replacing
from evonorm_plugins.training.seeds import generator_of

# Larger images are read anew in every epoch, unless the config says otherwise.
MAX_SIDE = 64
CIFAR10_FOLDER = "cifar-10-batches-py"  # torchvision's name for it


def decoded(source, path):
    """All images of a source, uint8 ``(N, 3, H, W)``; kept in the user's cache folder.

    Raises:
        DataError: an image does not decode or has another size than the first; it is named.
    """
    cached = _cache_file(path, source)
    if cached.is_file():
        try:
            return torch.from_numpy(np.load(cached))
        except (OSError, ValueError, EOFError):
            pass  # cut off: decoded again
    images = None
    for i in range(len(source.labels)):
        try:
            image = np.asarray(Image.open(io.BytesIO(source.read(i))).convert("RGB"))
        except DAMAGED as error:
            raise DataError(f"{source.name(i)} cannot be read: {error}") from None
        if images is None:
            images = np.empty((len(source.labels), 3, *image.shape[:2]), np.uint8)
        if image.shape[:2] != images.shape[2:]:
            raise DataError(
                f"{source.name(i)} is {image.shape[1]}x{image.shape[0]}, {source.name(0)} is "
                f"{images.shape[3]}x{images.shape[2]}; images in memory must be of one size, "
                "reader=files takes any"
            )
        images[i] = image.transpose(2, 0, 1)
    try:
        with replacing(cached) as partial, open(partial, "wb") as f:
            np.save(f, images)
    except (OSError, NoSpaceError):
        pass  # no such folder can be made, or it is full: the next run decodes again
    return torch.from_numpy(images)


def _cache_file(path, source):
    """The name depends on where the images are and on what would change if they did."""
    stamp = hashlib.sha256(os.path.abspath(path).encode())
    files = [path] if os.path.isfile(path) else [source.name(i) for i in range(len(source.labels))]
    for file in files:
        status = os.stat(file)
        stamp.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "evonorm" / "images" / f"{stamp.hexdigest()[:24]}.npy"


class Cifar10Source:
    """CIFAR-10 as ``torchvision.datasets.CIFAR10`` keeps it: pickled batches.

    Args:
        path: the folder that holds ``cifar-10-batches-py``, or that folder.
    """

    def __init__(self, path, *, train):
        folder = Path(path)
        folder = folder / CIFAR10_FOLDER if (folder / CIFAR10_FOLDER).is_dir() else folder
        names = [f"data_batch_{k}" for k in range(1, 6)] if train else ["test_batch"]
        batches = [_plain_pickle(folder / name) for name in names]
        meta = _plain_pickle(folder / "batches.meta")
        try:
            self.classes = [str(name) for name in meta["label_names"]]
            self.labels = np.concatenate([np.array(b["labels"], np.int64) for b in batches])
            images = np.concatenate([np.asarray(b["data"], np.uint8) for b in batches])
            self.images = torch.from_numpy(images.reshape(-1, 3, 32, 32))
        except (KeyError, ValueError) as error:
            raise DataError(f"{folder} does not hold CIFAR-10: {error}") from None

    @staticmethod
    def is_at(path):
        """Whether a folder is one of these."""
        return any((Path(path) / f / "batches.meta").is_file() for f in ("", CIFAR10_FOLDER))


# What NumPy's arrays are pickled with.
_PLAIN = {
    *(("numpy.core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


class _Plain(pickle.Unpickler):
    """Arrays, lists, dictionaries and strings; nothing that runs code."""

    def find_class(self, module, name):
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")
        return super().find_class(module, name)


def _plain_pickle(path):
    try:
        with open(path, "rb") as f:
            return _Plain(f, encoding="latin1").load()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


class MemoryTrainingData:
    """Batches for training out of images in memory.

    The images of an update, their crops and flips depend on the seed and the update's number alone,
    not on how ranks and accumulations divide them; so a run also goes on anywhere.

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
        self.padding = config.padding if config.augment != "none" else 0
        height, width = images.shape[2:]
        if size > min(height, width) + 2 * self.padding:
            raise DataError(
                f"resolution={size}, but the images are {width}x{height}, with a padding of "
                f"{self.padding} on each side"
            )

    def __len__(self):
        return len(self.labels)

    def batches(self, step):
        """``(uint8 images, labels)`` of this rank from an update on, without end."""
        c, per_epoch, order, epoch = self.config, len(self) // self.update, None, None
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                random = generator_of(c.seed, 1, epoch)
                order = torch.randperm(len(self), generator=random)
            start = step % per_epoch * self.update
            chosen, crops = order[start : start + self.update], self._draw(step)
            for k in range(c.accumulations):
                first = (k * self.ranks + self.rank) * c.batch_size
                part = slice(first, first + c.batch_size)
                images, labels = self.images[chosen[part]], self.labels[chosen[part]]
                yield self._crop(images, *(numbers[part] for numbers in crops)), labels
            step += 1

    def _draw(self, step):
        """Top and left corner and whether it is flipped, each ``(update,)``, of every image."""
        random, n = generator_of(self.config.seed, 2, step), self.update
        room = [s + 2 * self.padding - self.size for s in self.images.shape[2:]]
        if self.config.augment == "none":
            return [torch.full((n,), r // 2) for r in room] + [torch.zeros(n, dtype=torch.bool)]
        corners = [torch.randint(r + 1, (n,), generator=random) - self.padding for r in room]
        return [*corners, (torch.rand(n, generator=random) < 0.5) & self.config.flip]

    def _crop(self, images, top, left, flipped):
        height, width = images.shape[2:]
        rows = top[:, None] + torch.arange(self.size)
        columns = left[:, None] + torch.arange(self.size)
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
        places = rows.clamp(0, height - 1)[:, :, None] * width
        places = (places + columns.clamp(0, width - 1)[:, None, :]).flatten(1)
        pixels = images.flatten(2).gather(2, places[:, None].expand(-1, 3, -1))
        pixels = pixels.view(len(images), 3, self.size, self.size)
        if self.padding:
            inside = ((rows >= 0) & (rows < height))[:, None, :, None]
            pixels *= inside & ((columns >= 0) & (columns < width))[:, None, None, :]
        return pixels


def centre_crop(images, size):
    """The middle ``(N, 3, size, size)`` of images ``(N, 3, H, W)`` at least as large."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]
