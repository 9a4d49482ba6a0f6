"""Ground truth and detections in COCO's formats, checked and made ready for an evaluator.

Evaluators leave out what does not match, or fail in the middle. Here missing values are filled in
and reported, and ids are replaced by their ranks, so that text or an id of 0 means nothing special
later.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from evonorm_plugins.coco.check import (
    ID,
    Value,
    check_boxes,
    check_ids,
    check_masks,
    check_references,
    check_values,
)
from evonorm_plugins.coco.read import json_kind, read_lists
from evonorm_plugins.coco.shapes import is_mask, is_number, mask_area, outline_of
from evonorm_plugins.errors import DataError

_CROWD = Value("0 or 1", lambda value: value in (None, 0, 1))
_AREA = Value("a number of pixels", lambda value: value is None or is_number(value))
_SCORE = Value("a finite number", is_number)


@dataclass
class CocoData:
    """Checked annotations whose image and category ids are ranks that count from 1.

    ``images`` are ``{"id", "height", "width"}`` (the sizes None if the file has none),
    ``categories`` names in order of id, ``objects`` and ``found`` ground truth and detections with
    the keys of COCO. ``warnings`` says what was filled in.
    """

    images: list
    categories: list
    objects: list
    found: list
    warnings: list = field(default_factory=list)


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
        categories=[str(c.get("name", c["id"])) for c in categories],
        objects=[_object(k, a, ranks, sizes, masks) for k, a in enumerate(annotations, 1)],
        found=[
            _detection(k, d, ranks, sizes, masks, mask_areas) for k, d in enumerate(detections, 1)
        ],
    )
    without_match = [] if renumber else [k for k, a in enumerate(annotations) if a["id"] == 0]
    for k in without_match:
        data.objects[k]["id"] = 0
    data.warnings = _warnings(data, annotations, without_match, where, found_where)
    return data


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


def _object(
    number: int, annotation: dict, ranks: dict[str, dict], sizes: dict, masks: bool
) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": number, "iscrowd": int(annotation.get("iscrowd") or 0)}
    entry |= {key: known[annotation[key]] for key, known in ranks.items()}
    if annotation.get("bbox"):
        entry["bbox"] = annotation["bbox"]
    if masks:
        entry["segmentation"] = annotation["segmentation"]
    entry["area"] = annotation.get("area")
    if entry["area"] is None:
        size, mask = sizes[annotation["image_id"]], annotation.get("segmentation", [])
        if is_mask(mask) and None not in size:
            entry["area"] = mask_area(mask, size)
        else:
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return entry


def _detection(
    number: int,
    detection: dict,
    ranks: dict[str, dict],
    sizes: dict,
    masks: bool,
    mask_areas: bool,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": number, "score": detection["score"], "iscrowd": 0}
    entry |= {key: known[detection[key]] for key, known in ranks.items()}
    if _has_box(detection):
        entry["bbox"] = detection["bbox"]
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    if masks:
        entry["segmentation"] = _outlined(detection)["segmentation"]
        own_area = mask_areas and detection.get("segmentation") is not None
        if own_area or "bbox" not in entry:
            entry["area"] = mask_area(entry["segmentation"], sizes[detection["image_id"]])
    return entry


def _warnings(
    data: CocoData, annotations: list, without_match: list, where: str, found_where: str
) -> list[str]:
    warnings = []
    filled = {
        "iscrowd": "it is taken for 0",
        "area": "that of the mask is taken, or of the box where there is no mask",
    }
    without = Counter(key for a in annotations for key in filled if a.get(key) is None)
    for key, what in filled.items():
        if without[key]:
            warnings.append(
                f"{where}: {without[key]} of {len(annotations)} annotations have no {key}; {what}"
            )
    if without_match:
        warnings.append(
            f"{where}: annotation id 0 stands for 'no match' in pycocotools, so finding that "
            "object counts as a false detection; --renumber-ids counts it as found"
        )
    if not data.found:
        warnings.append(f"{found_where} has no detections: every AP and AR is 0")
    if not annotations:
        warnings.append(f"{where} has no annotations: every AP and AR is null")
    return warnings
