"""Read ground truth and detections in COCO's format, and find what is wrong with them first.

Evaluators leave out what does not match, or fail in the middle. Here ids are compared, missing
values are filled in and reported, and ids are replaced by their ranks, so that text or an id of 0
means nothing special later.
"""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field

from evonorm_plugins.coco.rle import first_bad_rle
from evonorm_plugins.coco.shapes import (
    checked_box,
    checked_mask,
    is_number,
    looks_like_mask,
    mask_area,
    outline_of,
    short,
)
from evonorm_plugins.errors import InputError, first


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


def read_json(path):
    """Parsed JSON of a file.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} ({os.path.getsize(path)} bytes) is not valid JSON: {error}; "
            "was its download or copy cut off?"
        ) from error


def coco_data(
    ground_truth,
    detections,
    *,
    masks=False,
    mask_areas=False,
    renumber=False,
    names=("the ground truth", "the detections"),
):
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
        InputError: entries are missing, have wrong types or point to ids that do not exist.
    """
    where, found_where = (os.fspath(name) for name in names)
    images, categories, annotations = _lists(ground_truth, where)
    warnings = []
    image_ids = _ranks(images, "image", where)
    category_ids = _ranks(categories, "category", where)
    _check_known(annotations, image_ids, category_ids, "annotation", where)
    if masks:
        _check_rle(annotations, "annotation", where)
    by_rank = sorted(images, key=lambda image: image_ids[image["id"]])
    sizes = {image_ids[image["id"]]: (image.get("height"), image.get("width")) for image in by_rank}
    objects = _objects(annotations, image_ids, category_ids, sizes, masks, warnings, where)
    _number_objects(objects, annotations, renumber, warnings, where)
    if not isinstance(detections, list):
        raise InputError(
            f"{found_where} holds a {_kind(detections)}; results are a list of objects with "
            "image_id, category_id, score and bbox or segmentation"
        )
    _check_known(detections, image_ids, category_ids, "detection", found_where, where)
    if masks:
        _check_rle(detections, "detection", found_where)
    found = _detections(detections, image_ids, category_ids, sizes, masks, mask_areas, found_where)
    if not found:
        warnings.append(f"{found_where} has no detections: every AP and AR is 0")
    if not objects:
        warnings.append(f"{where} has no annotations: every AP and AR is null")
    names_by_rank = sorted(categories, key=lambda c: category_ids[c["id"]])
    return CocoData(
        images=[{"id": k, "height": h, "width": w} for k, (h, w) in sizes.items()],
        categories=[str(c.get("name", c["id"])) for c in names_by_rank],
        objects=objects,
        found=found,
        warnings=warnings,
    )


def _kind(value):
    return {dict: "JSON object", list: "list", type(None): "null"}.get(
        type(value), type(value).__name__
    )


def _lists(content, where):
    keys = ("images", "categories", "annotations")
    if not isinstance(content, dict):
        raise InputError(
            f"{where} holds a {_kind(content)}; ground truth is a JSON object with the lists "
            f"{', '.join(keys)} (a list is the format of results)"
        )
    for key in keys:
        if not isinstance(content.get(key), list):
            hint = "; is it a test set, whose annotations are not public?"
            raise InputError(
                f"{where} has no list {key!r}; its keys are {first(content, 10)}"
                f"{hint if key == 'annotations' else ''}"
            )
    if not content["images"]:
        raise InputError(f"{where}: the list 'images' is empty, there is nothing to evaluate")
    if not content["categories"]:
        raise InputError(f"{where}: the list 'categories' is empty")
    return (content[key] for key in keys)


def _ranks(entries, kind, where):
    """``{id: 1 ...}`` in the order that ids sort in."""
    ids = []
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise InputError(
                f"{where}: {kind} number {k + 1} is {short(entry)}; "
                "it must be an object with an 'id', a whole number or a text"
            )
        ids.append(entry["id"])
    twice = [value for value, n in Counter(ids).items() if n > 1]
    if twice:
        raise InputError(f"{where}: {len(twice)} {kind} ids occur more than once: {first(twice)}")
    if len({isinstance(value, str) for value in ids}) > 1:
        text = next(value for value in ids if isinstance(value, str))
        raise InputError(f"{where}: some {kind} ids are numbers and some are texts, as {text!r}")
    return {value: rank for rank, value in enumerate(sorted(ids), 1)}


def _is_id(value):
    return isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())


def _check_known(entries, image_ids, category_ids, kind, where, known_from=None):
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{where}: {kind} number {k + 1} is {short(entry)}, not an object")
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        lost = [e.get(key) for e in entries if not (_is_id(e.get(key)) and e[key] in known)]
        if lost:
            values = list(dict.fromkeys(map(short, lost)))
            # repr tells the text '7' from the number 7.
            raise InputError(
                f"{where}: {len(lost)} of {len(entries)} {kind}s have a {key} that "
                f"{known_from or 'its list'} does not have: {first(values)} "
                f"(known are {first(map(repr, known))})"
            )


def _check_rle(entries, kind, where):
    masks = [(k, entry.get("segmentation")) for k, entry in enumerate(entries, 1)]
    masks = [
        (k, m) for k, m in masks if isinstance(m, dict) and isinstance(m.get("counts"), str)
        and looks_like_mask(m)
    ]  # fmt: skip
    bad = first_bad_rle(
        [mask["counts"] for _, mask in masks], [math.prod(mask["size"]) for _, mask in masks]
    )
    if bad is not None:
        k, mask = masks[bad]
        raise InputError(
            f"{where}: {kind} number {k} has run lengths that do not make a mask of (height, "
            f"width) {mask['size']}: {short(mask['counts'])}"
        )


def _objects(annotations, image_ids, category_ids, sizes, masks, warnings, where):
    objects, without = [], Counter()
    for k, annotation in enumerate(annotations):
        entry = {
            "image_id": image_ids[annotation["image_id"]],
            "category_id": category_ids[annotation["category_id"]],
        }
        name = f"{where}: the annotation with id {annotation.get('id', f'(none, number {k + 1})')}"
        if "bbox" in annotation or not masks:
            entry["bbox"] = checked_box(annotation, name)
        if masks:
            entry["segmentation"] = checked_mask(annotation, sizes[entry["image_id"]], name)
        crowd = annotation.get("iscrowd")
        without["iscrowd"] += crowd is None
        if crowd not in (None, 0, 1):
            raise InputError(f"{name} has iscrowd {crowd!r}; it must be 0 or 1")
        entry["iscrowd"] = int(crowd or 0)
        area = annotation.get("area")
        if area is None:
            without["area"] += 1
            area = _area(annotation, entry, sizes)
        if not is_number(area):
            raise InputError(f"{name} has area {area!r}; it must be a number of pixels")
        entry["area"] = area
        objects.append(entry)
    filled = {
        "iscrowd": "it is taken for 0",
        "area": "that of the mask is taken, or of the box where there is no mask",
    }
    for key, what in filled.items():
        if without[key]:
            warnings.append(
                f"{where}: {without[key]} of {len(annotations)} annotations have no {key}; {what}"
            )
    return objects


def _area(annotation, entry, sizes):
    segmentation = annotation.get("segmentation")
    if looks_like_mask(segmentation) and None not in sizes[entry["image_id"]]:
        return mask_area(segmentation, sizes[entry["image_id"]])
    return entry["bbox"][2] * entry["bbox"][3] if "bbox" in entry else None


def _number_objects(objects, annotations, renumber, warnings, where):
    ids = [a.get("id") for a in annotations]
    bad = [k for k, value in enumerate(ids) if not _is_id(value)]
    if bad:
        raise InputError(
            f"{where}: annotation number {bad[0] + 1} has id {ids[bad[0]]!r}; {len(bad)} of "
            f"{len(ids)} have none or none that is a whole number or a text"
        )
    twice = [value for value, n in Counter(ids).items() if n > 1]
    if twice:
        raise InputError(
            f"{where}: {len(twice)} annotation ids occur more than once: {first(twice)}"
        )
    for k, (entry, value) in enumerate(zip(objects, ids, strict=True), 1):
        entry["id"] = 0 if value == 0 and not renumber else k
    if 0 in ids and not renumber:
        warnings.append(
            f"{where}: annotation id 0 stands for 'no match' in pycocotools, so finding that "
            "object counts as a false detection; --renumber-ids counts it as found"
        )


def _detections(detections, image_ids, category_ids, sizes, masks, mask_areas, where):
    found = []
    for k, detection in enumerate(detections, 1):
        name = f"{where}: detection number {k}"
        entry = {
            "id": k,
            "image_id": image_ids[detection["image_id"]],
            "category_id": category_ids[detection["category_id"]],
            "score": detection.get("score"),
            "iscrowd": 0,
        }
        if not is_number(entry["score"]):
            raise InputError(f"{name} has score {entry['score']!r}; it must be a finite number")
        size = sizes[entry["image_id"]]
        with_box = detection.get("bbox") not in (None, [])
        with_mask = detection.get("segmentation") is not None
        if with_box:
            entry["bbox"] = checked_box(detection, name)
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        elif not masks:
            raise InputError(f"{name} has no bbox; give its boxes, or evaluate --iou segm alone")
        if masks:
            # A box without a mask stands for the mask, as in pycocotools.
            outline = detection if with_mask else {"segmentation": outline_of(entry["bbox"])}
            entry["segmentation"] = checked_mask(outline, size, name)
            if not with_box or (mask_areas and with_mask):
                entry["area"] = mask_area(entry["segmentation"], size)
        found.append(entry)
    return found
