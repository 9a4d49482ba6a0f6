"""Image files of any kind to uint8 tensors, as the reference tools see them."""

import io

import numpy as np
import torch

from evonorm_plugins.errors import BrokenImageError

# Those of pytorch-fid, in any case.
EXTENSIONS = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def decode(name, content):
    """uint8 tensor (3, H, W) of an image file.

    Grayscale and palettes become RGB and transparency is dropped, as Pillow's ``convert("RGB")``
    does it for the reference tools. Of 16 bits the upper 8 stay; Pillow would cut off at 255.
    The first picture of an animation counts. Orientation tags are ignored.

    Args:
        name: for the message.
        content: the file's bytes.

    Raises:
        BrokenImageError: it is no image, is cut off, or holds floating point numbers.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode == "F":
                raise ValueError(
                    "its pixels are floating point numbers of unknown range; save it with 8 bits"
                )
            pixels = _rgb(image)
    except Exception as error:  # Pillow's readers raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImageError(
            f"{name} ({len(content)} bytes) cannot be read as an image: {reason}"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rgb(image):
    if image.mode.startswith("I"):  # 16 bits; read as 32 by some readers
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, 2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
