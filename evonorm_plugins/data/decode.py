"""Image files of any kind to 8-bit pixels, by one rule for all that read images.

- Grey and palettes become RGB, and transparency is dropped, as Pillow's ``convert("RGB")`` does it
  for torch-fidelity, pytorch-fid and torchvision.
- Of 16 bits the upper 8 stay, whatever the image's largest value is; Pillow would cut grey ones off
  at 255 (those in colour it reads by this rule).
- Floating point numbers, and integers of 32 bits or with a sign, are refused: what is white in them
  is not known.
- Orientation tags are ignored. The first picture of an animation counts.
"""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from evonorm_plugins.errors import BrokenImageError


def open_image(name, data, mode="RGB", draft=None):
    """The image, decoded.

    Args:
        name: for the message.
        data: the file's bytes, or pixels, uint8 (H, W, 3).
        mode: "RGB", or "L" for grey.
        draft: a side in pixels: a JPEG at least twice as large may be decoded at a half, a quarter
            or an eighth of its size, but not smaller than this.

    Returns:
        A ``PIL.Image.Image`` of the mode.

    Raises:
        BrokenImageError: it is no image, is cut off, has too many pixels for Pillow
            (``PIL.Image.MAX_IMAGE_PIXELS``), or numbers of unknown range.
    """
    if isinstance(data, np.ndarray):
        image = Image.fromarray(data)
        return image if mode == "RGB" else image.convert(mode)
    try:
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft(None, (draft, draft))
        image.load()
        image = _eight_bits(image)
        return image if image.mode == mode else image.convert(mode)
    except Exception as error:  # Pillow's readers raise many kinds
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # which says where in memory the bytes are
            reason = "it is of no known format"
        raise BrokenImageError(
            f"{name} ({len(data)} bytes) cannot be read as an image: {reason}"
        ) from None


def _eight_bits(image):
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating point numbers" if image.mode == "F" else "32-bit or signed integers"
        raise ValueError(f"its pixels are {kind} of unknown range; save it with 8 bits")
    if image.mode.startswith("I"):  # 16 bits, which some readers give as 32
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    return image


def to_tensor(image):
    """uint8 tensor (C, H, W) of an image in mode RGB or L."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def decode(name, content):
    """uint8 tensor (3, H, W) of an image file's bytes. Raises as :func:`open_image`."""
    return to_tensor(open_image(name, content))
