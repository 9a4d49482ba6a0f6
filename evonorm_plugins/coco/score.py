"""Ground truth and detections in COCO's formats, checked and made ready for an evaluator.

Evaluators leave out what does not match, or fail in the middle. Here missing values are filled in
and reported, and ids are replaced by their ranks, so that text or an id of 0 means nothing special
later.
"""

import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

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
from evonorm_plugins.coco.columns import Columns, box_column, rank_column
from evonorm_plugins.coco.read import json_kind, read_lists
from evonorm_plugins.coco.rle import first_bad_rle
from evonorm_plugins.coco.shapes import (
    are_numbers,
    is_mask,
    is_number,
    is_size,
    mask_area,
    outline_of,
)
from evonorm_plugins.errors import DataError

_CROWD = Value(
    "0 or 1",
    lambda value: value in (None, 0, 1),
    lambda column: are_of(int, type(None))(column) and {None, 0, 1}.issuperset(column),
)
_AREA = Value(
    "a number of pixels",
    lambda value: value is None or is_number(value),
    lambda column: are_numbers([area for area in column if area is not None]),
)
_SCORE = Value("a finite number", is_number, are_numbers)


@dataclass
class CocoData:
    """Checked annotations whose image and category ids are ranks that count from 1.

    ``images`` are ``{"id", "height", "width"}`` (the sizes None if the file has none),
    ``categories`` names in order of id, ``objects`` and ``found`` ground truth and detections.
    ``warnings`` says what was filled in.
    """

    images: list
    categories: list
    objects: Columns
    found: Columns
    warnings: list = field(default_factory=list)

    def of_category(self, category: int) -> "CocoData":
        """The same with the objects and detections of one category, and their images, alone."""
        objects, found = (some.of_category(category) for some in (self.objects, self.found))
        seen = {*objects.images.tolist(), *found.images.tolist()}
        images = [image for image in self.images if image["id"] in seen]
        return replace(self, images=images, objects=objects, found=found)


def coco_data(
    ground_truth: Any,
    detections: Any,
    *,
    masks: bool = False,
    mask_areas: bool = False,
    renumber: bool = False,
    names: tuple = ("the ground truth", "the detections"),
) -> CocoData:
    """Check and normalise parsed annotations and results.

    Args:
        ground_truth: object with the lists ``images``, ``categories`` and ``annotations``.
        detections: list of ``{"image_id", "category_id", "score", "bbox" and/or "segmentation"}``.
        masks: whether masks will be compared, so that all entries need one.
        mask_areas: a detection that has a mask is small, medium or large by the mask's area, as in
            Detectron2, even if it has a box too. pycocotools takes the box's.
        renumber: count a match of annotation id 0, which pycocotools takes for no match.
        names: what messages call the two.

    Returns:
        CocoData

    Raises:
        DataError: entries are missing, have wrong types or point to ids that do not exist.
    """
    where, found_where = (os.fspath(name) for name in names)
    images, annotations, categories = read_lists(
        ground_truth, where, "evaluate", may_be_empty=("annotations",)
    )
    for kind, entries in (("image", images), ("category", categories)):
        check_values(entries, kind, where, {"id": ID})
        check_ids(entries, kind, where)
    images = sorted(images, key=lambda image: image["id"])
    categories = sorted(categories, key=lambda category: category["id"])
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in images}
    ranks = {
        "image_id": {image["id"]: k for k, image in enumerate(images, 1)},
        "category_id": {category["id"]: k for k, category in enumerate(categories, 1)},
    }
    _check_objects(annotations, where, ranks, sizes, masks)
    _check_found(detections, found_where, where, ranks, sizes, masks)
    data = CocoData(
        images=[{"id": k, "height": h, "width": w} for k, (h, w) in enumerate(sizes.values(), 1)],
        categories=_names(categories),
        objects=_objects(annotations, ranks, sizes, masks, renumber),
        found=_found(detections, ranks, sizes, masks, mask_areas),
    )
    data.warnings = _warnings(data, annotations, where, found_where)
    return data


def _names(categories: list[dict]) -> list[str]:
    """Names of categories, with the id where several have one name."""
    names = [str(category.get("name", category["id"])) for category in categories]
    times = Counter(names)
    return [
        name if times[name] == 1 else f"{name} (id {category['id']})"
        for name, category in zip(names, categories, strict=True)
    ]


def _check_objects(
    annotations: list, where: str, ranks: dict[str, dict], sizes: dict, masks: bool
) -> None:
    kind = "annotation"
    check_values(annotations, kind, where, {"id": ID, "iscrowd": _CROWD, "area": _AREA})
    if len({a["id"] for a in annotations}) < len(annotations):
        check_ids(annotations, kind, where)
    for key, known in ranks.items():
        check_references(annotations, kind, where, key, known)
    check_boxes(annotations, where, optional=masks)
    if masks:
        check_masks(annotations, kind, where, sizes)


def _check_found(
    detections: Any,
    where: str,
    known_from: str,
    ranks: dict[str, dict],
    sizes: dict,
    masks: bool,
) -> None:
    if not isinstance(detections, list):
        raise DataError(
            f"{where} holds a {json_kind(detections)}; results are a list of objects with "
            "image_id, category_id, score and bbox or segmentation"
        )
    kind = "detection"
    check_values(detections, kind, where, {"score": _SCORE})
    for key, known in ranks.items():
        check_references(detections, kind, where, key, known, known_from)
    if not masks and not all(map(_has_box, detections)):
        k = next(k for k, d in enumerate(detections, 1) if not _has_box(d))
        raise DataError(
            f"{where}: detection number {k} has no bbox; give its boxes, or evaluate --iou segm "
            "alone"
        )
    check_boxes(detections, where, optional=True)
    if masks:
        check_masks([_outlined(d) for d in detections], kind, where, sizes)


def _has_box(detection: dict) -> bool:
    return detection.get("bbox") not in (None, [])


def _outlined(detection: dict) -> dict:
    """A box without a mask stands for the mask, as in pycocotools."""
    if detection.get("segmentation") is not None or not _has_box(detection):
        return detection
    return {**detection, "segmentation": outline_of(detection["bbox"])}


def _objects(
    annotations: list[dict], ranks: dict[str, dict], sizes: dict, masks: bool, renumber: bool
) -> Columns:
    ids = np.arange(1, len(annotations) + 1)
    if not renumber:
        ids[[annotation["id"] == 0 for annotation in annotations]] = 0
    boxes = box_column(annotations)
    areas = [annotation.get("area") for annotation in annotations]
    for k in [k for k, area in enumerate(areas) if area is None]:
        areas[k] = _area_of(annotations[k], boxes[k], sizes)
    return Columns(
        ids=ids,
        images=rank_column(annotations, "image_id", ranks["image_id"]),
        categories=rank_column(annotations, "category_id", ranks["category_id"]),
        boxes=boxes,
        areas=np.array(areas, float),
        crowds=np.array([bool(annotation.get("iscrowd")) for annotation in annotations], bool),
        masks=[annotation["segmentation"] for annotation in annotations] if masks else None,
    )


def _area_of(annotation: dict, box: np.ndarray, sizes: dict) -> float:
    """The area of an annotation's mask, or of its box where there is no mask."""
    mask: Any = annotation.get("segmentation")
    size = sizes[annotation["image_id"]]
    if is_mask(mask) and is_size(size):
        counts = mask["counts"] if isinstance(mask, dict) else None
        if (
            not isinstance(counts, str)
            or first_bad_rle([counts], [math.prod(mask["size"])]) is None
        ):
            return mask_area(mask, size)
    return box[2] * box[3]


def _found(
    detections: list[dict], ranks: dict[str, dict], sizes: dict, masks: bool, mask_areas: bool
) -> Columns:
    boxes = box_column(detections)
    with np.errstate(over="ignore"):
        areas = boxes[:, 2] * boxes[:, 3]
    outlined = list(map(_outlined, detections)) if masks else []
    for k, detection in enumerate(outlined):
        own_area = mask_areas and detections[k].get("segmentation") is not None
        if own_area or not _has_box(detection):
            areas[k] = mask_area(detection["segmentation"], sizes[detection["image_id"]])
    return Columns(
        ids=np.arange(1, len(detections) + 1),
        images=rank_column(detections, "image_id", ranks["image_id"]),
        categories=rank_column(detections, "category_id", ranks["category_id"]),
        boxes=boxes,
        areas=areas,
        crowds=np.zeros(len(detections), bool),
        scores=np.array([detection["score"] for detection in detections], float),
        masks=[detection["segmentation"] for detection in outlined] if masks else None,
    )


def _warnings(data: CocoData, annotations: list, where: str, found_where: str) -> list[str]:
    warnings = []
    filled = {
        "iscrowd": "it is taken for 0",
        "area": "that of the mask is taken, or of the box where there is no mask",
    }
    for key, what in filled.items():
        without = [annotation.get(key) for annotation in annotations].count(None)
        if without:
            warnings.append(
                f"{where}: {without} of {len(annotations)} annotations have no {key}; {what}"
            )
    if 0 in data.objects.ids:
        warnings.append(
            f"{where}: annotation id 0 stands for 'no match' in pycocotools, so finding that "
            "object counts as a false detection; --renumber-ids counts it as found"
        )
    if not len(data.found):
        warnings.append(f"{found_where} has no detections: every AP and AR is 0")
    if not annotations:
        warnings.append(f"{where} has no annotations: every AP and AR is null")
    return warnings
