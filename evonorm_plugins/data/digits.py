"""The 1,797 handwritten digits, 8x8 pixels, that come with scikit-learn."""

import numpy as np
import torch
from PIL import Image

from evonorm_plugins.data.source import MemorySource
from evonorm_plugins.errors import DataError


class DigitsSource(MemorySource):
    """The digits, enlarged bicubically to a resolution.

    Raises:
        DataError: scikit-learn is not installed.
    """

    path = "digits"

    def __init__(self, resolution=None):
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise DataError("data=digits needs scikit-learn: pip install scikit-learn") from None
        digits = load_digits()
        self.classes = [str(name) for name in digits.target_names]
        self.labels = digits.target.astype(np.int64)
        grey = (digits.images * (255 / 16)).round().astype(np.uint8)
        if resolution:
            size, method = (resolution, resolution), Image.Resampling.BICUBIC
            grey = np.stack([np.asarray(Image.fromarray(g).resize(size, method)) for g in grey])
        self.images = torch.from_numpy(np.repeat(grey[:, None], 3, 1))

    def files(self):
        return []
