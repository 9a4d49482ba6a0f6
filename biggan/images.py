"""From the bytes of an image file to uint8 ``(C, H, W)`` at the resolution of a run."""

import io

import numpy as np
import torch
from PIL import Image

from evonorm_plugins.data.images import eight_bits


class TooSmallError(Exception):
    """An image with fewer pixels along its short edge than the resolution."""


def decode(data, resolution, channels, *, enlarge):
    """uint8 ``(channels, resolution, resolution)``: the middle square, resampled by area.

    Args:
        data: bytes of a file, or an array uint8 ``(H, W, 3)``.
        enlarge: whether a smaller image may be enlarged, bilinearly.

    Raises:
        TooSmallError: it is smaller and may not.
        one of ``DAMAGED``: it cannot be read.
    """
    if isinstance(data, bytes):
        image = Image.open(io.BytesIO(data))
        # A JPEG can be decoded at a half, a quarter or an eighth; twice the resolution is kept, so
        # that the resampling by area decides what the result looks like.
        image.draft(None, (2 * resolution, 2 * resolution))
        image = eight_bits(image).convert("L" if channels == 1 else "RGB")
    else:
        image = Image.fromarray(data).convert("L" if channels == 1 else "RGB")
    width, height = image.size
    side = min(width, height)
    if side < resolution and not enlarge:
        raise TooSmallError(f"{width}x{height}")
    if (width, height) != (resolution, resolution):
        left, top = (width - side) // 2, (height - side) // 2
        method = Image.Resampling.BOX if side >= resolution else Image.Resampling.BILINEAR
        box = (left, top, left + side, top + side)
        image = image.resize((resolution, resolution), method, box=box)
    array = np.asarray(image)
    array = array[None] if channels == 1 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(array, order="C"))
