"""Boxes and masks of COCO's formats."""

import math

import numpy as np

_NUMBER = (int, float)
_NUMBERS = frozenset(_NUMBER)
_FARTHEST = 1e6  # pixels


def is_box(box: object) -> bool:
    """Whether a value is x, y, width, height: finite numbers, no size negative."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(map(is_number, box))
        and box[2] >= 0
        and box[3] >= 0
    )


def is_mask(mask: object, *, every_polygon: bool = True) -> bool:
    """Whether a value is RLE, or polygons: each of them, or one of them at least."""
    enough = all if every_polygon else any
    return is_rle(mask) or (isinstance(mask, list) and mask != [] and enough(map(is_polygon, mask)))


def is_polygon(polygon: object) -> bool:
    """Whether a value is x0, y0, x1, y1 ... of 3 or more points not far outside of any image."""
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6  # pycocotools would take 4 numbers for a box
        and len(polygon) % 2 == 0
        # Drawing far outside of the image would take for ever.
        and _lies_near(polygon)
    )


def is_rle(mask: object) -> bool:
    """Whether a value is RLE; of compressed counts, whether they are a text."""
    if not isinstance(mask, dict):
        return False
    counts, size = mask.get("counts"), mask.get("size")
    if not (
        isinstance(size, list)
        and len(size) == 2
        and all(isinstance(v, int) and v > 0 for v in size)
    ):
        return False
    if isinstance(counts, list):
        return all(isinstance(v, int) and v >= 0 for v in counts) and (
            sum(counts) == math.prod(size)
        )
    return isinstance(counts, str) and counts != ""


def _lies_near(polygon: list) -> bool:
    # Not one number after the other: there are millions. NaN is the one that is not itself.
    return (
        _NUMBERS.issuperset(map(type, polygon))
        and not any(v != v for v in polygon)
        and min(polygon) > -_FARTHEST
        and max(polygon) < _FARTHEST
    )


def mask_area(segmentation: list | dict, size: tuple[int, int]) -> float:
    from pycocotools import mask

    return float(mask.area(_encoded(segmentation, size)))


def decoded_mask(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Polygons or RLE of any kind -> bool (H, W).

    Args:
        size: height and width of the image, for polygons; RLE has its own.
    """
    from pycocotools import mask

    return mask.decode(_encoded(segmentation, size)).astype(bool)


def _encoded(segmentation: list | dict, size: tuple[int, int]) -> dict:
    """Polygons or RLE of any kind -> compressed RLE."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def outline_of(box: list) -> list[list]:
    x, y, width, height = box
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def is_number(value: object) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and math.isfinite(value)
