"""Images made for the tests."""

import io

import numpy as np
from PIL import Image


def picture(label, number, size=32):
    """A PNG of a class: stripes whose width is that of the class, somewhere."""
    random = np.random.default_rng(1000 * label + number)
    x = np.arange(size) + random.integers(size)
    stripes = ((x // (2 + 3 * label)) % 2 * 200).astype(np.uint8)
    image = np.stack([np.tile(stripes, (size, 1))] * 3, 2)
    image[..., label % 3] = random.integers(40, 80)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()
