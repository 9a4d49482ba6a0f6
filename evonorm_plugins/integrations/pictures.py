"""A picture of ground truth beside predictions.

Drawn with Pillow at the size it is looked at: Detectron2's Visualizer and torchvision's functions
draw at the image's own size, where labels on an image of 128 pixels cannot be read.
"""

import colorsys
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from evonorm_plugins.coco.shapes import decoded_mask
from evonorm_plugins.files import replacing

_SIDE = 384  # pixels of the longer side of an image as drawn
_GAP = 8
_TEXT = 17  # font size
_TITLE = 24
_NAMED = 8  # objects of one class that are labelled; where there are more, none is


class Item(NamedTuple):
    """What is drawn of one object: class index, label, box (x0, y0, x1, y1), mask (H, W).

    Boxes are in pixels of the image; masks are bool and of its size. One of the two may be None.
    """

    category: int
    label: str
    box: list | None
    mask: np.ndarray | None = None


def draw_pairs(
    images: list[np.ndarray],
    truths: list[list[Item]],
    found: list[list[Item]],
    path: str | os.PathLike,
    *,
    columns: int = 2,
    score_threshold: float | None = 0.5,
    no_truth: str = "no objects",
) -> None:
    """Write one PNG with each image twice: ground truth on the left, predictions on the right.

    Args:
        images: arrays (H, W, 3), uint8, RGB; they may differ in size.
        truths, found: for each image a list of :class:`Item`; later ones are drawn over earlier
            ones, so the surest of what was found comes last. More than 8 that are all of one class
            have no labels.
        path: the ``.png`` file; written under a temporary name, then renamed.
        columns: images in a row of the picture.
        score_threshold: of the predictions in ``found``, for the title; None where they have no
            scores.
        no_truth: written into an image whose list in ``truths`` is empty.

    Raises:
        ValueError: the arguments do not fit together; the message says which and how.
    """
    check_arguments(images, truths, found, path, columns)
    pairs = [
        (_draw(image, true, no_truth), _draw(image, predicted, "nothing found"))
        for image, true, predicted in zip(images, truths, found, strict=True)
    ]
    score = "" if score_threshold is None else f" (score >= {score_threshold:g})"
    titles = "ground truth", f"prediction{score}"
    _save(_arrange(pairs, titles, min(columns, len(pairs))), Path(path))


def check_arguments(
    images: list[np.ndarray], truths: list, found: list, path: str | os.PathLike, columns: int
) -> None:
    """Raises ValueError where the arguments of :func:`draw_pairs` do not fit together."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {str(path)!r}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if not 0 < len(images) == len(truths) == len(found):
        raise ValueError(
            f"need as many ground truths and predictions as images and at least one, got "
            f"{len(images)} images, {len(truths)} ground truths, {len(found)} predictions"
        )
    for k, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image {k} must be uint8 (H, W, 3), got {image.dtype} {image.shape}")


def true_item(
    category: int,
    box: list,
    segmentation: list | dict | None,
    shape: tuple[int, int],
    class_names: list[str],
    *,
    crowd: bool = False,
) -> Item:
    """The :class:`Item` of a ground truth.

    Args:
        category: contiguous class index.
        box: x0, y0, x1, y1.
        segmentation: polygons or RLE of COCO, or nothing.
        shape: height and width of the image.
        class_names: names by class index.
        crowd: whether it stands for many objects.

    Raises:
        ValueError: the class has no name, or the mask is of another size.
    """
    mask = decoded_mask(segmentation, shape) if segmentation else None
    if mask is not None and mask.shape != tuple(shape):
        raise ValueError(f"a ground truth mask is for (H, W) {mask.shape}, its image is {shape}")
    return Item(category, class_name(class_names, category) + " (crowd)" * crowd, box, mask)


def found_item(
    category: int, score: float, box: list, mask: np.ndarray | None, class_names: list[str]
) -> Item:
    """The :class:`Item` of a prediction, labelled with its score.

    Raises:
        ValueError: the class has no name.
    """
    return Item(category, f"{class_name(class_names, category)} {score:.2f}", box, mask)


def class_items(
    labels: np.ndarray, class_names: list[str], *, first: int = 0, drawn: set[int] | None = None
) -> list[Item]:
    """Items for the classes of a label image (H, W).

    Args:
        first: number of the colour of class 0.
        drawn: the classes that are drawn; all that have a name if None.
    """
    drawn = set(range(len(class_names))) if drawn is None else drawn
    return [
        Item(first + index, class_names[index], None, labels == index)
        for index in np.unique(labels).tolist()
        if index in drawn
    ]


def points_mask(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Discs around points (N, 2) of x and y, as a mask (H, W) of an image of that shape."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    radius = max(1.5, max(shape) / 60)
    mask = np.zeros(shape, bool)
    for x, y in points:
        mask |= (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    return mask


def class_name(class_names: list[str], index: int) -> str:
    if not 0 <= index < len(class_names):
        raise ValueError(f"class {index} has no name; class_names has {len(class_names)}")
    return class_names[index]


def _colour(index):
    """The same for a class in every picture; steps of the golden ratio keep neighbours apart."""
    rgb = colorsys.hsv_to_rgb(0.98 + index * 0.618034, 0.9 - 0.3 * (index // 5 % 2), 1.0)
    return tuple(round(255 * c) for c in rgb)


def _draw(image, items, if_none):
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    for index, _, _, mask in items:
        if mask is not None:
            _paint_mask(canvas, mask, _colour(index))
    draw = ImageDraw.Draw(canvas)
    places = [item.box or _inside(item.mask) for item in items]
    boxes = [[min(max(v * scale, 0), size[k % 2] - 1) for k, v in enumerate(p)] for p in places]
    for item, box in zip(items, boxes, strict=True):
        if item.box is not None:
            draw.rectangle(_ordered(box), outline=_colour(item.category), width=2)
    taken = []
    if len(items) > _NAMED and len({item.category for item in items}) == 1:
        return canvas  # labels that all say the same would hide the objects
    # The surest is last; its label gets the best place.
    for (index, label, _, _), box in reversed(list(zip(items, boxes, strict=True))):
        taken.append(_label(draw, size, label, box, _colour(index), taken))
    if not items:
        _label(draw, size, if_none, [4, 4, 4, 4], (230, 230, 230), taken)
    return canvas


def _inside(mask):
    """A box of one point in the middle of a mask."""
    ys, xs = np.nonzero(mask)
    middle = len(ys) // 2
    return [xs[middle], ys[middle]] * 2 if len(ys) else [0, 0, 0, 0]


def _ordered(box):
    x0, y0, x1, y1 = box
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _paint_mask(canvas, mask, colour):
    # Bilinear and cut at one half: smooth borders where a small mask is enlarged.
    mask = Image.fromarray(mask.astype(np.uint8) * 255)
    mask = mask.resize(canvas.size, Image.Resampling.BILINEAR).point(lambda v: 255 * (v >= 128))
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(7)))
    opacity = np.where(inner, 110, np.asarray(mask))  # half transparent within an opaque line
    canvas.paste(colour, mask=Image.fromarray(opacity.astype(np.uint8)))


def _label(draw, size, text, box, colour, taken):
    """Draw a label at that corner of its box where it hides least of the labels in ``taken``."""
    font = ImageFont.load_default(_TEXT)
    width = round(draw.textlength(text, font)) + 6
    height = _TEXT + 4
    x0, y0, x1, y1 = box
    places = [
        (min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0)))
        for y in (y0 - height, y1, y0, y1 - height)
        for x in (x0, x1 - width)
    ]
    areas = [(x, y, x + width, y + height) for x, y in places]
    area = min(areas, key=lambda a: sum(_overlap(a, other) for other in taken))
    draw.rectangle(area, fill=colour)
    dark = np.dot(colour, (0.3, 0.59, 0.11)) < 110
    draw.text((area[0] + 3, area[1] + 1), text, "white" if dark else "black", font)
    return area


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _arrange(pairs, titles, columns):
    """A title row over rows of pairs; the two of a pair touch, pairs stand apart."""
    rows = [pairs[k : k + columns] for k in range(0, len(pairs), columns)]
    # Landscape and portrait images share a column, so a cell is as wide as the widest.
    cell = max(image.width for pair in pairs for image in pair)
    pair_width = 2 * cell + _GAP // 2
    heights = [max(pair[0].height for pair in row) for row in rows]
    title_height = _TITLE + 2 * _GAP
    width = columns * pair_width + (columns + 1) * 2 * _GAP
    sheet = Image.new("RGB", (width, title_height + sum(heights) + 2 * _GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [2 * _GAP + c * (pair_width + 2 * _GAP) for c in range(columns)]
    for left in lefts:
        for side, title in enumerate(titles):
            middle = left + side * (cell + _GAP // 2) + cell / 2
            font = ImageFont.load_default(min(_TITLE, _fitting(draw, title, cell)))
            draw.text((middle, title_height / 2), title, "black", font, anchor="mm")
    top = title_height
    for row, height in zip(rows, heights, strict=True):
        for left, pair in zip(lefts, row, strict=False):
            for side, image in enumerate(pair):
                x = left + side * (cell + _GAP // 2) + (cell - image.width) // 2
                sheet.paste(image, (x, top + (height - image.height) // 2))
        top += height + 2 * _GAP
    return sheet


def _fitting(draw, text, width):
    """Font size at which ``text`` is as wide as ``width``."""
    return max(8, int(_TITLE * width / draw.textlength(text, ImageFont.load_default(_TITLE))))


def _save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, "PNG")
