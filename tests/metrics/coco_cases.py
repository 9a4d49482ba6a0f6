"""Made-up ground truth and detections in COCO's format, with what makes evaluators disagree."""

import numpy as np


def random_case(
    seed, *, images=20, categories=4, objects=5, masks=True, first_id=1, detections=True
):
    """Returns ``(ground truth, detections)`` as parsed JSON.

    Images without objects, images without detections, crowds, scores that tie, boxes that were
    found twice, categories without objects, areas that are not those of the box, more than 100
    detections in an image and objects without a detection all occur. Ids start at ``first_id``.
    """
    rng = np.random.default_rng(seed)
    size = 320
    ground_truth = {
        "images": [
            {"id": k + first_id, "file_name": f"{k}.jpg", "height": size, "width": size}
            for k in range(images)
        ],
        "categories": [
            {"id": k + first_id, "name": f"class {k}"} for k in range(categories + 1)
        ],  # the last one is empty
        "annotations": [],
    }
    found = []
    for image in ground_truth["images"]:
        for _ in range(rng.integers(0, 2 * objects + 1)):
            box = _box(rng, size)
            category = int(rng.integers(0, categories)) + first_id
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
            category = int(rng.integers(0, categories)) + first_id
            found.append(_detection(rng, image["id"], category, _box(rng, size), masks, size))
    rng.shuffle(found)
    return ground_truth, found if detections else []


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
    if crowd:  # uncompressed, as COCO has it
        from pycocotools import mask

        pixels = mask.decode(mask.frPyObjects(_polygon(rng, box), size, size))[:, :, 0]
        flat = np.concatenate([[0], pixels.ravel(order="F"), [0]])
        changes = np.flatnonzero(np.diff(flat))
        ends = np.concatenate([[0], changes, [size * size]])
        return {"size": [size, size], "counts": [int(v) for v in np.diff(ends)]}
    return _polygon(rng, box)


def _rle(polygon, size):
    from pycocotools import mask

    rle = mask.merge(mask.frPyObjects(polygon, size, size))
    return {"size": rle["size"], "counts": rle["counts"].decode()}
