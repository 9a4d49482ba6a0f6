"""Where images and their classes come from: folders, zip files, HDF5 files, tar shards, digits.

What a source is, says :mod:`evonorm_plugins.data.sources`.
"""

import glob
import os
from pathlib import Path

import numpy as np

from evonorm_plugins.data.sources import FolderSource, ZipSource, check_classes
from evonorm_plugins.errors import DataError


class Hdf5Source:
    """Datasets ``imgs`` (or ``images``), uint8 ``(N, 3, H, W)`` or ``(N, H, W, 3)``, and
    ``labels`` ``(N,)``."""

    blocks = None

    def __init__(self, path):
        try:
            import h5py
        except ImportError:
            raise DataError(f"reading {path} needs h5py: pip install h5py") from None
        self.path, self.pid = str(path), None
        try:
            with h5py.File(path) as f:
                self.key = next((key for key in ("imgs", "images") if key in f), None)
                if self.key is None or "labels" not in f:
                    known = ", ".join(f) or "nothing"
                    raise DataError(f"{path} needs datasets imgs and labels; it has {known}")
                shape, dtype = f[self.key].shape, f[self.key].dtype
                self.labels = np.asarray(f["labels"], np.int64).reshape(-1)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or dtype != np.uint8:
            raise DataError(
                f"{path}: {self.key} is {dtype} {shape}, not uint8 (N, 3, H, W) or (N, H, W, 3)"
            )
        if len(self.labels) != shape[0]:
            raise DataError(f"{path} has {shape[0]} images and {len(self.labels)} labels")
        self.channels_first = shape[1] == 3
        self.classes = _numbered_classes(path, self.labels)

    def read(self, i):
        import h5py

        if self.pid != os.getpid():
            self.pid, self.file = os.getpid(), h5py.File(self.path)
        image = self.file[self.key][i]
        return np.ascontiguousarray(image.transpose(1, 2, 0) if self.channels_first else image)

    def name(self, i):
        return f"{self.path}:{self.key}[{i}]"

    def __getstate__(self):
        return {**{k: v for k, v in vars(self).items() if k != "file"}, "pid": None}


class DigitsSource:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 pixels, enlarged."""

    blocks = None

    def __init__(self, resolution):
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise DataError("data=digits needs scikit-learn: pip install scikit-learn") from None
        from PIL import Image

        digits = load_digits()
        self.classes = [str(name) for name in digits.target_names]
        self.labels = digits.target.astype(np.int64)
        grey = (digits.images * (255 / 16)).round().astype(np.uint8)
        size = (resolution, resolution)
        self.images = np.stack(
            [np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BICUBIC)) for g in grey]
        )

    def read(self, i):
        return np.repeat(self.images[i][:, :, None], 3, 2)

    def name(self, i):
        return f"digit {i}"


def open_source(path, resolution):
    """The source that ``path`` names.

    Raises:
        DataError: nothing is there, or it is not of a known kind, or a class is empty.
    """
    from biggan.shards import TarSource

    if path == "digits":
        return DigitsSource(resolution)
    if not path:
        raise DataError("no data is given: data=PATH, a folder, a .zip, a .hdf5, .tar shards")
    if os.path.isdir(path):
        shards = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
        return TarSource(shards) if shards else FolderSource(path)
    shards = sorted(glob.glob(path))
    if not shards:
        raise DataError(f"data={path}: there is no such folder or file")
    suffix = Path(shards[0]).suffix.lower()
    if suffix == ".tar":
        return TarSource(shards)
    if suffix == ".zip" and len(shards) == 1:
        return ZipSource(shards[0])
    if suffix in (".h5", ".hdf5") and len(shards) == 1:
        return Hdf5Source(shards[0])
    raise DataError(f"data={path}: neither a folder nor one .zip or .hdf5 nor .tar shards")


def _numbered_classes(path, labels):
    if not len(labels) or labels.min() < 0:
        raise DataError(f"{path}: labels must be there and not below 0")
    classes = [str(k) for k in range(int(labels.max()) + 1)]
    check_classes(path, classes, labels)
    return classes
