"""CIFAR-10 as ``torchvision.datasets.CIFAR10`` keeps it: pickled batches."""

from pathlib import Path

import numpy as np
import torch

from evonorm_plugins.data.pickles import load_plain
from evonorm_plugins.data.source import MemorySource
from evonorm_plugins.errors import DataError

FOLDER = "cifar-10-batches-py"  # torchvision's name for it


class Cifar10Source(MemorySource):
    """The training images of CIFAR-10, or the test images.

    Args:
        path: the folder that holds ``cifar-10-batches-py``, or that folder.

    Raises:
        DataError: it does not hold them.
    """

    def __init__(self, path, *, train):
        self.path = Path(path) / FOLDER if (Path(path) / FOLDER).is_dir() else Path(path)
        names = [f"data_batch_{k}" for k in range(1, 6)] if train else ["test_batch"]
        self.paths = [self.path / name for name in names]
        batches = list(map(load_plain, self.paths))
        meta = load_plain(self.path / "batches.meta")
        try:
            self.classes = [str(name) for name in meta["label_names"]]
            self.labels = np.concatenate([np.array(b["labels"], np.int64) for b in batches])
            images = np.concatenate([np.asarray(b["data"], np.uint8) for b in batches])
            self.images = torch.from_numpy(images.reshape(len(self.labels), 3, 32, 32))
            if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
                raise ValueError(f"a label is not one of {len(self.classes)} classes")
        except Exception as error:  # they may hold anything
            raise DataError(f"{self.path} does not hold CIFAR-10: {error}") from None

    def files(self):
        return list(map(str, self.paths))

    @staticmethod
    def is_at(path):
        """Whether a folder is one of these."""
        return any((Path(path) / f / "batches.meta").is_file() for f in ("", FOLDER))
