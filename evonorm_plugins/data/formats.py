"""Which files are images."""

import sys

from evonorm_plugins.errors import DataError, first

# Those of torchvision's ImageFolder and of pytorch-fid, in any case. No GIF, often an animation
# that lies beside images.
EXTENSIONS = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_image(name):
    """Whether a file is named like an image, is not hidden, and is no shadow file of macOS."""
    *folders, base = name.split("/")
    return (
        base.lower().endswith(EXTENSIONS) and not base.startswith(".") and "__MACOSX" not in folders
    )


def image_names(path, names):
    """Those of ``names`` that are images, sorted. GIFs are left out with a line on stderr."""
    animations = sum(name.lower().endswith(".gif") for name in names)
    if animations:
        print(f"{path}: {animations} .gif files are left out; PNG is read", file=sys.stderr)
    return sorted(filter(is_image, names))


def no_images(path, names):
    """The :class:`DataError` for a set without images: says what it holds instead."""
    others = sorted(name for name in names if not name.rpartition("/")[2].startswith("."))
    what = f"it holds {first(others)}" if others else "it is empty"
    known = ", ".join(EXTENSIONS)
    return DataError(f"{path} holds no images ({known}, subfolders included); {what}")
