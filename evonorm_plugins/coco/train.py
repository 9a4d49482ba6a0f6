"""Check a COCO-format set before hours are spent on training with it.

Much that can be wrong with such a set is no error to Detectron2, torchvision or pycocotools: they
leave out what does not match, or fail in the evaluation after training. Here it is all found at the
start.
"""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from evonorm_plugins.coco.check import (
    ID,
    Value,
    are_of,
    check_boxes,
    check_ids,
    check_masks,
    check_references,
    check_values,
)
from evonorm_plugins.coco.read import read_json, read_lists
from evonorm_plugins.coco.shapes import are_numbers, is_number
from evonorm_plugins.errors import DataError, first

logger = logging.getLogger("evonorm_plugins")


def _of_type(kind: type, hint: str = "") -> Value:
    return Value(
        f"of type {kind.__name__}{hint}", lambda value: isinstance(value, kind), are_of(kind)
    )


_SIDE = Value(
    "a whole number of pixels",
    lambda v: isinstance(v, int) and v > 0,
    lambda column: are_of(int)(column) and min(column, default=1) > 0,
)
_INT, _TEXT = _of_type(int), _of_type(str)
IMAGE = {"id": ID, "file_name": _TEXT, "height": _SIDE, "width": _SIDE}
CATEGORY = {"id": _INT, "name": _TEXT}
# pycocotools reads area and iscrowd, but only in the evaluation.
ANNOTATION = {
    "id": _INT,
    "image_id": ID,
    "category_id": _INT,
    "bbox": _of_type(list),
    "area": Value(
        "the number of pixels of the mask (of the box without masks)", is_number, are_numbers
    ),
    "iscrowd": _of_type(int, "; it is 0 for ordinary objects"),
}


@dataclass
class CocoReport:
    """What :func:`check_coco` counted.

    ``instances`` maps every category's name, in order of id, to its number of annotations that are
    not crowds and have a box larger than nothing: those that are trained on. The
    ``images_without_instances`` are left out.
    """

    images: int
    images_without_instances: int
    instances: dict
    crowds: int
    empty_boxes: int


def check_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    masks: bool = True,
    every_category: bool = False,
    content: Any = None,
) -> CocoReport:
    """Read a COCO "instances" file and compare it with itself and the folder of images.

    No image is opened. Things that cost accuracy but do not stop training are logged as warnings:
    categories without instances, boxes of size zero, an annotation with id 0.

    Args:
        json_file: path of the annotations.
        image_root: folder that the images' ``file_name`` are relative to.
        masks: whether every annotation needs a ``segmentation``, as mask heads do.
        every_category: whether a category without instances is an error rather than a warning.
        content: the annotations where they are parsed already.

    Returns:
        CocoReport

    Raises:
        DataError: the set cannot be used.
    """
    where, image_root = os.fspath(json_file), os.fspath(image_root)
    content = read_json(where, "annotation file") if content is None else content
    images, annotations, categories = read_lists(content, where, "learn")
    for kind, entries, values in (
        ("image", images, IMAGE),
        ("category", categories, CATEGORY),
        ("annotation", annotations, ANNOTATION),
    ):
        check_values(entries, kind, where, values)
        check_ids(entries, kind, where)
    _check_files(where, image_root, images)
    for key, listed in (("image_id", images), ("category_id", categories)):
        check_references(annotations, "annotation", where, key, [e["id"] for e in listed])
    _check_annotation_ids(where, annotations)
    check_boxes(annotations, where)
    if masks:
        check_masks(
            annotations,
            "annotation",
            where,
            {image["id"]: (image["height"], image["width"]) for image in images},
            every_polygon=False,  # Detectron2 drops the others
            advice="; without masks, train a model of boxes alone (in Detectron2: MODEL.MASK_ON "
            "False)",
        )
    ignored = [a["id"] for a in annotations if a.get("ignore")]
    if ignored:
        raise DataError(
            f"{where}: {len(ignored)} annotations have 'ignore', which is not supported: ids "
            f"{first(ignored)}; remove them or make them crowds with 'iscrowd': 1"
        )
    return _count(where, images, annotations, categories, every_category)


def _check_files(where: str, image_root: str, images: list[dict]) -> None:
    if not os.path.isdir(image_root):
        raise DataError(f"image folder {image_root} is not there; {where} needs it")
    present: dict[
        str, set[str]
    ] = {}  # folder -> names in it; listing once is far faster than asking for every file
    absent = []
    for image in images:
        folder, name = os.path.split(image["file_name"])
        if folder not in present:
            present[folder] = _names(os.path.join(image_root, folder))
        if name not in present[folder]:
            absent.append(image["file_name"])
    if absent:
        raise DataError(
            f"{len(absent)} of {len(images)} images of {where} are not in {image_root}: "
            f"{first(absent)}"
        )


def _names(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_annotation_ids(where: str, annotations: list[dict]) -> None:
    negative = [a["id"] for a in annotations if a["id"] < 0]
    if negative:
        raise DataError(
            f"{where}: {len(negative)} annotation ids are negative: {first(negative)}; number "
            "them from 1"
        )
    if any(a["id"] == 0 for a in annotations):
        logger.warning(
            "%s: annotation id 0 is what pycocotools writes for 'no match', so finding that object "
            "counts as a false detection; number annotations from 1",
            where,
        )


def _count(
    where: str,
    images: list[dict],
    annotations: list[dict],
    categories: list[dict],
    every_category: bool,
) -> CocoReport:
    # COCO itself has two boxes of height zero (ids 918 and 2206849 of train2017).
    empty = [a for a in annotations if 0 in a["bbox"][2:]]
    if empty:
        logger.warning(
            "%s: %d of %d boxes have width or height 0, they are not trained on: %s",
            where,
            len(empty),
            len(annotations),
            first([f"{a['bbox']} (id {a['id']})" for a in empty]),
        )
    usable = [a for a in annotations if not a["iscrowd"] and 0 not in a["bbox"][2:]]
    if not usable:
        raise DataError(
            f"{where}: all {len(annotations)} annotations are crowds or have boxes of size 0, "
            "there is nothing to learn"
        )
    per_id = Counter(a["category_id"] for a in usable)
    instances: Counter[str] = Counter()
    for category in sorted(categories, key=lambda c: c["id"]):
        instances[category["name"]] += per_id[category["id"]]
    without = [name for name, n in instances.items() if not n]
    if without:
        message = (
            f"{where}: {len(without)} of {len(instances)} categories have no instances: "
            f"{first(without, 100)}"
        )
        if every_category:
            raise DataError(f"{message}; nothing can be learnt for them, leave them out")
        logger.warning(message)
    return CocoReport(
        images=len(images),
        images_without_instances=len(images) - len({a["image_id"] for a in usable}),
        instances=dict(instances),
        crowds=sum(1 for a in annotations if a["iscrowd"]),
        empty_boxes=len(empty),
    )
