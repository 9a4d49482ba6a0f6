"""Names of image files, and what reading one may raise."""

import numpy as np
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# What Pillow raises for a damaged file.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, IndexError)


def is_image(name):
    """Whether a file is named like an image and is not hidden."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(EXTENSIONS) and not base.startswith(".")


def eight_bits(image):
    """16-bit grey images scaled; Pillow's own conversion would cut them off at 255."""
    if image.mode.startswith("I"):
        array = np.asarray(image).astype(np.int64)
        return Image.fromarray((array >> 8 if array.max(initial=0) > 255 else array).astype("u1"))
    return image
