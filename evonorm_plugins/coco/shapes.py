"""Boxes and masks of COCO's formats, checked."""

import math

from evonorm_plugins.errors import InputError

_NUMBER = (int, float)
_NUMBERS = frozenset(_NUMBER)
_FARTHEST = 1e6  # pixels


def checked_box(entry, name):
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise InputError(
            f"{name} has bbox {short(box)}; it must be 4 finite numbers: x, y, width, height"
        )
    if box[2] < 0 or box[3] < 0:
        raise InputError(
            f"{name} has bbox {box} of negative size; it must be x, y, width, height in pixels"
        )
    return box


def checked_mask(entry, size, name):
    mask = entry.get("segmentation")
    if not looks_like_mask(mask):
        raise InputError(
            f"{name} has segmentation {short(mask)}; it must be polygons of 3 or more points, or "
            "RLE with 'size' and 'counts'"
        )
    if None in size or not all(isinstance(v, int) and v > 0 for v in size):
        raise InputError(
            f"{name} has a mask, but its image has height {size[0]!r} and width {size[1]!r}"
        )
    if isinstance(mask, dict) and list(mask["size"]) != list(size):
        raise InputError(
            f"{name} has a mask of (height, width) {mask['size']}, its image is {list(size)}"
        )
    return mask


def looks_like_mask(mask):
    if isinstance(mask, dict):
        counts, size = mask.get("counts"), mask.get("size")
        if not isinstance(size, list) or not all(isinstance(v, int) and v > 0 for v in size):
            return False
        if isinstance(counts, list):
            return all(isinstance(v, int) and v >= 0 for v in counts) and (
                sum(counts) == math.prod(size)
            )
        return isinstance(counts, str) and counts != ""
    # A mask of 4 numbers would be taken for a box by pycocotools.
    return (
        isinstance(mask, list)
        and mask != []
        and all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in mask)
        # Drawing far outside of the image would take for ever.
        and all(map(_lies_near, mask))
    )


def _lies_near(polygon):
    # Not one number after the other: there are millions. NaN is the one that is not itself.
    return (
        _NUMBERS.issuperset(map(type, polygon))
        and not any(v != v for v in polygon)
        and min(polygon) > -_FARTHEST
        and max(polygon) < _FARTHEST
    )


def mask_area(segmentation, size):
    from pycocotools import mask

    return float(mask.area(_encoded(segmentation, size)))


def decoded_mask(segmentation, size):
    """Polygons or RLE of any kind -> bool (H, W).

    Args:
        size: height and width of the image, for polygons; RLE has its own.
    """
    from pycocotools import mask

    return mask.decode(_encoded(segmentation, size)).astype(bool)


def _encoded(segmentation, size):
    """Polygons or RLE of any kind -> compressed RLE."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def outline_of(box):
    x, y, width, height = box
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def is_number(value):
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and math.isfinite(value)


def short(value):
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
