"""What a source of images is, and what its kinds share."""

import os

import numpy as np

from evonorm_plugins.data.decode import open_image
from evonorm_plugins.errors import BrokenImageError, DataError, InputError, first


class Source:
    """A set of images, small in memory; several processes may use it at once.

    Attributes:
        labels: int64 (N,), the class of every image; zeros where there are no classes.
        classes: names of the classes, or None.
        blocks: the first numbers of runs of images that lie together in one file and are quickest
            read near each other, or None.
        images: all images, uint8 tensor (N, 3, H, W), where they are in memory anyway, or None.
        sequential: whether images are read quickest in rising order by one process.
    """

    classes = blocks = images = None
    sequential = False

    def __len__(self):
        return len(self.labels)

    def read(self, i):
        """The bytes of image ``i``'s file, or its pixels, uint8 (H, W, 3)."""
        raise NotImplementedError

    def name(self, i):
        """Where image ``i`` is, for messages."""
        raise NotImplementedError

    def files(self):
        """The paths of all files that the images are in."""
        raise NotImplementedError

    def describe(self):
        """What the protocol of a measurement must say of how images are read, beside their path."""
        return {}

    def image(self, i, mode="RGB", draft=None):
        """Image ``i``; see :func:`evonorm_plugins.data.decode.open_image`.

        Raises:
            BrokenImageError: it cannot be read; it is named.
        """
        try:
            data = self.read(i)
        except InputError:
            raise
        except Exception as error:  # of the file system, zlib, HDF5
            reason = getattr(error, "strerror", None) or error
            raise BrokenImageError(f"{self.name(i)} cannot be read: {reason}") from None
        return open_image(self.name(i), data, mode, draft)


class MemorySource(Source):
    """Images that are in memory; subclasses set ``images``, ``labels``, ``classes``, ``path``."""

    def read(self, i):
        return self.images[i].permute(1, 2, 0).numpy()

    def name(self, i):
        return f"{self.path}: image {i}"


class Names:
    """Many strings as one buffer: a list of objects would be copied by every worker process."""

    def __init__(self, names):
        encoded = [os.fsencode(name) for name in names]
        self.buffer = b"".join(encoded)
        self.ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.buffer[start : self.ends[i]])


class PerProcess:
    """What ``make(*args)`` opens, anew in every process: a forked one must not share open files."""

    def __init__(self, make, *args):
        self.make, self.args, self.pid, self.opened = make, args, None, None

    def __call__(self):
        if self.pid != os.getpid():
            self.pid, self.opened = os.getpid(), self.make(*self.args)
        return self.opened

    def __getstate__(self):
        return {**vars(self), "pid": None, "opened": None}


def pread(file, offset, size):
    """``size`` bytes at a place of a :class:`PerProcess` file, fewer where it ends before."""
    return os.pread(file().fileno(), size, offset)


def check_classes(path, classes, labels):
    """Raise :class:`DataError`, naming them, where classes have no images."""
    present = set(np.unique(labels).tolist())
    empty = [name for number, name in enumerate(classes) if number not in present]
    if empty:
        raise DataError(
            f"{path}: {len(empty)} of {len(classes)} classes have no images: {first(empty)}"
        )


def numbered_classes(path, labels):
    """Names of the classes that are numbers, 0 to the largest label.

    Raises:
        DataError: there are no labels, one is below 0, or a class has no images.
    """
    if not len(labels) or labels.min() < 0:
        raise DataError(f"{path}: labels must be there and not below 0")
    count = int(labels.max()) + 1
    if count > 1_000_000 > len(labels):  # and a list of names would not fit in memory
        raise DataError(f"{path}: label {count - 1} of {len(labels)} images: most have no images")
    classes = [str(k) for k in range(count)]
    check_classes(path, classes, labels)
    return classes
