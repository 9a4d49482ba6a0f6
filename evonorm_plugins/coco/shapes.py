"""Boxes and masks of COCO's formats."""

import math
import sys
from collections.abc import Sequence
from itertools import chain

import numpy as np

_NUMBER = (int, float)
_NUMBERS = frozenset(_NUMBER)
_FARTHEST = 1e6  # pixels
_MOST_PIXELS = 2**32
_LARGEST = sys.float_info.max  # JSON has whole numbers beyond it


def is_box(box: object) -> bool:
    """Whether a value is x, y, width, height: finite numbers, no size negative."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(map(is_number, box))
        and box[2] >= 0
        and box[3] >= 0
    )


def are_boxes(boxes: Sequence) -> bool:
    """Whether all are boxes, faster; it may take good ones for bad."""
    if not ({list}.issuperset(map(type, boxes)) and {4}.issuperset(map(len, boxes))):
        return False
    numbers = list(chain.from_iterable(boxes))
    sizes = numbers[2::4] + numbers[3::4]
    return are_numbers(numbers) and min(sizes, default=0) >= 0


def is_mask(mask: object, *, every_polygon: bool = True) -> bool:
    """Whether a value is RLE, or polygons: each of them, or one of them at least."""
    enough = all if every_polygon else any
    return is_rle(mask) or (isinstance(mask, list) and mask != [] and enough(map(is_polygon, mask)))


def are_masks(masks: Sequence) -> bool:
    """Whether all are masks, with every polygon good, faster; it may take good ones for bad."""
    outlines = [mask for mask in masks if type(mask) is list]
    polygons = list(chain.from_iterable(outlines))
    return (
        all(outlines)
        and _are_polygons(polygons)
        and _are_rles([mask for mask in masks if type(mask) is not list])
    )


def is_polygon(polygon: object) -> bool:
    """Whether a value is x0, y0, x1, y1 ... of 3 or more points not far outside of any image."""
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6  # pycocotools would take 4 numbers for a box
        and len(polygon) % 2 == 0
        # Drawing far outside of the image would take for ever.
        and _lies_near(polygon)
    )


def _are_polygons(polygons: list) -> bool:
    if not {list}.issuperset(map(type, polygons)):
        return False
    lengths = set(map(len, polygons))
    if any(n < 6 or n % 2 for n in lengths):
        return False
    if not _NUMBERS.issuperset(map(type, chain.from_iterable(polygons))):
        return False
    try:
        numbers = np.fromiter(chain.from_iterable(polygons), float)
    except OverflowError:
        return False
    return bool((np.abs(numbers) < _FARTHEST).all())  # NaN is not smaller


def _are_rles(masks: list) -> bool:
    if not {dict}.issuperset(map(type, masks)):
        return False
    sizes = [mask.get("size") for mask in masks]
    if not ({list}.issuperset(map(type, sizes)) and {2}.issuperset(map(len, sizes))):
        return False
    if not {int}.issuperset(map(type, chain.from_iterable(sizes))):
        return False
    if not all(map(is_size, set(map(tuple, sizes)))):
        return False
    return all(
        counts != "" if type(counts) is str else is_rle(mask)
        for mask, counts in ((mask, mask.get("counts")) for mask in masks)
    )


def is_size(size: object) -> bool:
    """Whether a value is the height and width of an image whose pixels can be counted in C."""
    return (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
        and size[0] * size[1] < _MOST_PIXELS
    )


def is_rle(mask: object) -> bool:
    """Whether a value is RLE; of compressed counts, whether they are a text."""
    if not isinstance(mask, dict):
        return False
    counts, size = mask.get("counts"), mask.get("size")
    if size is None or not is_size(size):
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
    """Whether a value is a finite number that a float can hold."""
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and abs(value) <= _LARGEST


def are_numbers(values: Sequence) -> bool:
    """Whether all are such numbers, faster; it may take good ones for bad."""
    try:
        return _NUMBERS.issuperset(map(type, values)) and all(map(math.isfinite, values))
    except OverflowError:
        return False
