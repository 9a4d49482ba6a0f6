"""HDF5 files of images."""

import numpy as np

from evonorm_plugins.data.source import PerProcess, Source, numbered_classes
from evonorm_plugins.errors import DataError


class Hdf5Source(Source):
    """Datasets ``imgs`` (or ``images``), uint8 (N, 3, H, W) or (N, H, W, 3), and ``labels`` (N,).

    Raises:
        DataError: h5py is not installed, or the file holds nothing like this.
    """

    def __init__(self, path):
        try:
            import h5py
        except ImportError:
            raise DataError(f"reading {path} needs h5py: pip install h5py") from None
        self.path, self.file = str(path), PerProcess(h5py.File, str(path), "r")
        try:
            with h5py.File(path, "r") as f:
                self._check(f, h5py.Dataset)
        except DataError:
            raise
        except Exception as error:  # of a damaged file
            raise DataError(f"{path} cannot be read: {error}") from None
        self.classes = numbered_classes(path, self.labels)

    def _check(self, f, dataset):
        path, found = self.path, {k: f[k] for k in f if isinstance(f[k], dataset)}
        self.key = next((key for key in ("imgs", "images") if key in found), None)
        if self.key is None or "labels" not in found:
            known = ", ".join(f) or "nothing"
            raise DataError(f"{path} needs datasets imgs and labels; it has {known}")
        shape, dtype = found[self.key].shape, found[self.key].dtype
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or dtype != np.uint8:
            raise DataError(
                f"{path}: {self.key} is {dtype} {shape}, not uint8 (N, 3, H, W) or (N, H, W, 3)"
            )
        labels = found["labels"]
        if labels.dtype.kind not in "iu" or labels.size != shape[0]:
            raise DataError(
                f"{path} has {shape[0]} images and labels {labels.dtype} {labels.shape}, which "
                "must be as many whole numbers"
            )
        self.labels = np.asarray(labels, np.int64).reshape(-1)
        self.channels_first = shape[1] == 3

    def read(self, i):
        image = self.file()[self.key][i]
        return np.ascontiguousarray(image.transpose(1, 2, 0) if self.channels_first else image)

    def name(self, i):
        return f"{self.path}:{self.key}[{i}]"

    def files(self):
        return [self.path]
