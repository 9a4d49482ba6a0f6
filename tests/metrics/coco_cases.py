"""Made-up ground truth and detections in COCO's format, with what makes evaluators disagree."""

import numpy as np


def varied_case(seed):
    """``(ground truth, detections, max_dets)``: :func:`random_case` with options that are drawn."""
    rng = np.random.default_rng((seed, 1))
    case = random_case(
        seed,
        images=int(rng.integers(1, 7)),
        categories=int(rng.integers(1, 6)),
        objects=int(rng.integers(0, 6)),
        first_id=int(rng.integers(0, 2)),
        gap=int(rng.integers(1, 4)),
        any_mask=True,
        detections=rng.random() > 0.02,
    )
    limits = [(1, 10, 100), (1, 10, 300), (100,), (2, 5), (1, 3, 10, 50)]
    return *case, limits[rng.choice(5, p=(0.6, 0.1, 0.1, 0.1, 0.1))]


def random_case(
    seed,
    *,
    images=20,
    categories=4,
    objects=5,
    masks=True,
    first_id=1,
    gap=1,
    any_mask=False,
    detections=True,
):
    """Returns ``(ground truth, detections)`` as parsed JSON.

    Images without objects, images without detections, crowds, scores that tie, boxes that were
    found twice, categories without objects, areas that are not those of the box, more than 100
    detections in an image and objects without a detection all occur. Ids start at ``first_id``,
    those of categories are ``gap`` apart. With ``any_mask``, masks are of all kinds that there are,
    some of two parts and some reach out of the image.
    """
    rng = np.random.default_rng(seed)
    size = 320
    ground_truth = {
        "images": [
            {"id": k + first_id, "file_name": f"{k}.jpg", "height": size, "width": size}
            for k in range(images)
        ],
        "categories": [
            {"id": k * gap + first_id, "name": f"class {k}"} for k in range(categories + 1)
        ],  # the last one is empty
        "annotations": [],
    }
    found = []
    for image in ground_truth["images"]:
        for _ in range(rng.integers(0, 2 * objects + 1)):
            box = _box(rng, size)
            category = int(rng.integers(0, categories)) * gap + first_id
            annotation = {
                "id": len(ground_truth["annotations"]) + first_id,
                "image_id": image["id"],
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3] * float(rng.uniform(0.5, 1.0)),
                "iscrowd": int(rng.random() < 0.1),
            }
            if masks:
                annotation["segmentation"] = _segmentation(rng, box, size, annotation["iscrowd"])
            ground_truth["annotations"].append(annotation)
            for _ in range(rng.choice([0, 1, 1, 2])):
                found.append(_detection(rng, image["id"], category, _moved(rng, box), masks, size))
        for _ in range(120 if rng.random() < 0.1 else rng.integers(0, 4)):
            category = int(rng.integers(0, categories)) * gap + first_id
            found.append(_detection(rng, image["id"], category, _box(rng, size), masks, size))
    rng.shuffle(found)
    if masks and any_mask:
        for entry in (*ground_truth["annotations"], *found):
            entry["segmentation"] = _any_mask(rng, entry, size)
    return ground_truth, found if detections else []


def _any_mask(rng, entry, size):
    kind = rng.choice(["as it is", "two", "outside", "RLE", "uncompressed"])
    polygons = _polygon(rng, entry["bbox"])
    if kind == "as it is":
        return entry["segmentation"]
    if kind == "two":
        return polygons + _polygon(rng, _box(rng, size))
    if kind == "outside":
        return [[v + float(rng.choice([-40, 40])) for v in polygons[0]]]
    return _rle(polygons, size) if kind == "RLE" else _uncompressed(polygons, size)


def _box(rng, size):
    side = float(rng.choice([12, 40, 150]))
    width, height = rng.uniform(0.5, 1.5, 2) * side
    x, y = rng.uniform(0, [size - width, size - height])
    return [round(float(v), 2) for v in (x, y, width, height)]


def _moved(rng, box):
    scale = rng.choice([0.0, 0.03, 0.15])
    moved = np.array(box) + rng.normal(0, 1, 4) * scale * np.array([box[2], box[3], *box[2:]])
    return [round(float(v), 2) for v in np.maximum(moved, [0, 0, 2, 2])]


def _detection(rng, image, category, box, masks, size):
    # One decimal: many scores are equal.
    score = round(float(rng.uniform(0.05, 1)), 1)
    detection = {"image_id": image, "category_id": category, "bbox": box, "score": score}
    if masks:
        detection["segmentation"] = _rle(_polygon(rng, box), size)
    return detection


def _polygon(rng, box):
    """An ellipse in the box, its outline shaken."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x = box[0] + box[2] / 2 * (1 + np.cos(angles) * rng.uniform(0.8, 1, 12))
    y = box[1] + box[3] / 2 * (1 + np.sin(angles) * rng.uniform(0.8, 1, 12))
    return [[round(float(v), 2) for v in np.stack([x, y], 1).ravel()]]


def _segmentation(rng, box, size, crowd):
    polygon = _polygon(rng, box)
    return _uncompressed(polygon, size) if crowd else polygon  # as COCO has it


def _uncompressed(polygons, size):
    from pycocotools import mask

    pixels = mask.decode(mask.merge(mask.frPyObjects(polygons, size, size)))
    flat = np.concatenate([[0], pixels.ravel(order="F"), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], changes, [size * size]])
    return {"size": [size, size], "counts": [int(v) for v in np.diff(ends)]}


def _rle(polygon, size):
    from pycocotools import mask

    rle = mask.merge(mask.frPyObjects(polygon, size, size))
    return {"size": rle["size"], "counts": rle["counts"].decode()}
