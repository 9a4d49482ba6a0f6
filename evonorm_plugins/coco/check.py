"""Check a COCO-format set before hours are spent on it.

Much that can be wrong with such a set is no error to Detectron2, torchvision or pycocotools: they
leave out what does not match, or fail in the evaluation after training. Here it is all found at the
start.
"""

import json
import logging
import math
import os
from collections import Counter
from dataclasses import dataclass

from evonorm_plugins.errors import DataError

logger = logging.getLogger("evonorm_plugins")

_NUMBER = (int, float)
# key -> accepted types. pycocotools reads area and iscrowd, but only in the evaluation.
_IMAGE_KEYS = {"id": (int, str), "file_name": (str,), "height": (int,), "width": (int,)}
_CATEGORY_KEYS = {"id": (int,), "name": (str,)}
_ANNOTATION_KEYS = {
    "id": (int,),
    "image_id": (int, str),
    "category_id": (int,),
    "bbox": (list,),
    "area": _NUMBER,
    "iscrowd": (int,),
}
_HINTS = {
    "area": "; it is the number of pixels of the mask (of the box where there are no masks)",
    "iscrowd": "; it is 0 for ordinary objects",
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


def check_coco(json_file, image_root, *, masks=True, every_category=False):
    """Read a COCO "instances" file and compare it with itself and the folder of images.

    No image is opened. Things that cost accuracy but do not stop training are logged as warnings:
    categories without instances, boxes of size zero, an annotation with id 0.

    Args:
        json_file: path of the annotations.
        image_root: folder that the images' ``file_name`` are relative to.
        masks: whether every annotation needs a ``segmentation``, as mask heads do.
        every_category: whether a category without instances is an error rather than a warning.

    Returns:
        CocoReport

    Raises:
        DataError: the set cannot be used.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    images, annotations, categories = _read(json_file)
    _check_entries(json_file, "image", images, _IMAGE_KEYS)
    _check_entries(json_file, "category", categories, _CATEGORY_KEYS)
    _check_entries(json_file, "annotation", annotations, _ANNOTATION_KEYS)
    _check_files(json_file, image_root, images)
    _check_references(json_file, annotations, "image_id", images, "images")
    _check_references(json_file, annotations, "category_id", categories, "categories")
    _check_annotations(json_file, annotations, masks)
    return _count(json_file, images, annotations, categories, every_category)


def _read(json_file):
    """images, annotations and categories; DataError unless each is a list with something in it."""
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"annotation file {json_file}: {error.strerror}") from error
    except ValueError as error:  # bad JSON, and bytes that are no UTF-8
        raise DataError(
            f"annotation file {json_file} ({os.path.getsize(json_file)} bytes) is not valid JSON: "
            f"{error}; was its download or copy cut off?"
        ) from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        raise DataError(
            f"{json_file} holds a {type(content).__name__}; COCO annotations are an object with "
            f"the keys {', '.join(keys)} (a list is the format of results)"
        )
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f"{json_file} has no list {_first(missing)}; its keys are {_first(content, 10)}"
        )
    for key in keys:
        if not content[key]:
            raise DataError(f"{json_file}: the list {key!r} is empty, there is nothing to learn")
    return (content[key] for key in keys)


def _check_entries(json_file, kind, entries, keys):
    """Every entry is an object with all ``keys`` of the right types, and ids are unique."""
    where = [k for k, entry in enumerate(entries) if not isinstance(entry, dict)]
    if where:
        raise DataError(
            f"{json_file}: {kind} number {where[0] + 1} is {entries[where[0]]!r}, not an object"
        )
    for key, types in keys.items():
        bad = [k for k, entry in enumerate(entries) if not isinstance(entry.get(key), types)]
        if bad:
            first = entries[bad[0]]
            value = f"is {first[key]!r}" if key in first else "is missing"
            named = f"number {bad[0] + 1}" if key == "id" else f"with id {first['id']!r}"
            expected = " or ".join(t.__name__ for t in types)
            raise DataError(
                f"{json_file}: {key!r} {value} in the {kind} {named}, and wrong in {len(bad)} of "
                f"{len(entries)}; it must be of type {expected}{_HINTS.get(key, '')}"
            )
    twice = [value for value, n in Counter(e["id"] for e in entries).items() if n > 1]
    if twice:
        raise DataError(
            f"{json_file}: {len(twice)} {kind} ids occur more than once: {_first(twice)}"
        )


def _check_files(json_file, image_root, images):
    if not os.path.isdir(image_root):
        raise DataError(f"image folder {image_root} is not there; {json_file} needs it")
    present = {}  # folder -> names in it; listing once is far faster than asking for every file
    absent = []
    for image in images:
        folder, name = os.path.split(image["file_name"])
        if folder not in present:
            present[folder] = _names(os.path.join(image_root, folder))
        if name not in present[folder]:
            absent.append(image["file_name"])
    if absent:
        raise DataError(
            f"{len(absent)} of {len(images)} images of {json_file} are not in {image_root}: "
            f"{_first(absent)}"
        )


def _names(folder):
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_references(json_file, annotations, key, targets, plural):
    known = {target["id"] for target in targets}
    lost = [a for a in annotations if a[key] not in known]
    if lost:
        # repr tells the text '7' from the number 7.
        values = list(dict.fromkeys(repr(a[key]) for a in lost))
        listed = [repr(target["id"]) for target in targets]
        raise DataError(
            f"{json_file}: {len(lost)} of {len(annotations)} annotations have {key}s that "
            f"{plural!r} does not list: {_first(values)} ({plural!r} lists {_first(listed)})"
        )


def _check_annotations(json_file, annotations, masks):
    negative = [a["id"] for a in annotations if a["id"] < 0]
    if negative:
        raise DataError(
            f"{json_file}: {len(negative)} annotation ids are negative: {_first(negative)}; "
            "number them from 1"
        )
    if any(a["id"] == 0 for a in annotations):
        logger.warning(
            "%s: annotation id 0 is what pycocotools writes for 'no match', so finding that object "
            "counts as a false detection; number annotations from 1",
            json_file,
        )
    bad = [a for a in annotations if not _is_box(a["bbox"])]
    if bad:
        raise DataError(
            f"{json_file}: {len(bad)} of {len(annotations)} boxes are not 4 finite numbers x, y, "
            f"width, height in pixels with no negative size: {_boxes(bad)}"
        )
    bare = [a["id"] for a in annotations if not _has_mask(a)]
    if masks and bare:
        raise DataError(
            f"{json_file}: {len(bare)} of {len(annotations)} annotations have no 'segmentation' "
            f"(polygons of 3 or more points, or RLE): ids {_first(bare)}; without masks, train a "
            "model of boxes alone (in Detectron2: MODEL.MASK_ON False)"
        )
    ignored = [a["id"] for a in annotations if a.get("ignore")]
    if ignored:
        raise DataError(
            f"{json_file}: {len(ignored)} annotations have 'ignore', which is not "
            f"supported: ids {_first(ignored)}; remove them or make them crowds with 'iscrowd': 1"
        )


def _is_box(box):
    return (
        len(box) == 4
        and all(isinstance(v, _NUMBER) and math.isfinite(v) for v in box)
        and box[2] >= 0
        and box[3] >= 0
    )


def _has_mask(annotation):
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        return "counts" in mask and "size" in mask
    # Detectron2 drops polygons of fewer points, and the instance with its last one.
    return isinstance(mask, list) and any(
        isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in mask
    )


def _count(json_file, images, annotations, categories, every_category):
    # COCO itself has two boxes of height zero (ids 918 and 2206849 of train2017).
    empty = [a for a in annotations if 0 in a["bbox"][2:]]
    if empty:
        logger.warning(
            "%s: %d of %d boxes have width or height 0, they are not trained on: %s",
            json_file,
            len(empty),
            len(annotations),
            _boxes(empty),
        )
    usable = [a for a in annotations if not a["iscrowd"] and 0 not in a["bbox"][2:]]
    if not usable:
        raise DataError(
            f"{json_file}: all {len(annotations)} annotations are crowds or have boxes of size 0, "
            "there is nothing to learn"
        )
    per_id = Counter(a["category_id"] for a in usable)
    instances = Counter()
    for category in sorted(categories, key=lambda c: c["id"]):
        instances[category["name"]] += per_id[category["id"]]
    without = [name for name, n in instances.items() if not n]
    if without:
        message = (
            f"{json_file}: {len(without)} of {len(instances)} categories have no instances: "
            f"{_first(without, 100)}"
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


def _boxes(annotations):
    return _first([f"{a['bbox']} (id {a['id']})" for a in annotations])


def _first(values, n=5):
    """The first ``n`` of ``values`` for a message, and how many more there are."""
    shown = ", ".join(str(value) for value in list(values)[:n])
    return f"{shown} and {len(values) - n} more" if len(values) > n else shown
