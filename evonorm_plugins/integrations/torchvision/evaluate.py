"""Detections in COCO's format, their AP, and the picture."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import box_convert

from evonorm_plugins.coco.score import coco_data
from evonorm_plugins.coco.shapes import decoded_mask
from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.pictures import Item, draw_pairs, found_item, true_item
from evonorm_plugins.integrations.results import Results
from evonorm_plugins.integrations.torchvision.data import CocoSet, EvaluationImages, batches
from evonorm_plugins.metrics.ap import average_precision


def detect(model: nn.Module, coco: CocoSet, *, batch: int = 1, workers: int = 0) -> list[dict]:
    """Detections of ``model`` on every image of a set, as entries of COCO's result format.

    Args:
        model: left in the mode it is in.
        coco: :class:`~evonorm_plugins.integrations.torchvision.data.CocoSet`.
    """
    device = next(model.parameters()).device
    training, found = model.training, []
    model.eval()
    try:
        for entries in batches(EvaluationImages(coco), range(len(coco.images)), batch, workers):
            with torch.inference_mode():
                outputs = model([image.to(device) for image, _ in entries])
            for (_, k), output in zip(entries, outputs, strict=True):
                found += _entries(output, coco.images[k]["id"], coco.category_ids)
    finally:
        model.train(training)
    return found


def _entries(output: dict, image_id: int | str, category_ids: list[int]) -> list[dict[str, Any]]:
    boxes = box_convert(output["boxes"], "xyxy", "xywh")
    entries = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(
            output["labels"].tolist(), boxes.tolist(), output["scores"].tolist(), strict=True
        )
    ]
    if "masks" in output and entries:
        from pycocotools import mask as coco_mask

        masks = (output["masks"][:, 0] > 0.5).cpu().numpy()  # (N, H, W)
        encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        for entry, rle in zip(entries, encoded, strict=True):
            entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return entries


def evaluate(coco: CocoSet, detections: list[dict]) -> Results:
    """``{"bbox": {"AP": ..., "AP-cat": ...}, "segm": {...}}`` in percent, "segm" for masks.

    As Detectron2 does, masks are small, medium or large by their own area. NaN where there is no
    ground truth.
    """
    results: Results = {}
    for task in ("bbox", "segm") if coco.masks else ("bbox",):
        data = coco_data(
            coco.content,
            detections,
            masks=task == "segm",
            mask_areas=True,
            names=(coco.json_file, "the detections"),
        )
        result = average_precision(data, task)
        numbers = result.summary()
        for k, name in enumerate(coco.categories):
            numbers[f"AP-{name}"] = result.summary(k)["AP"]
        results[task] = {n: math.nan if v is None else v * 100 for n, v in numbers.items()}
    return results


def save_detections(detections: list[dict], path: Path) -> None:
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(detections, file)


def picture(
    coco: CocoSet,
    detections: list[dict],
    path: str | Path,
    *,
    images: int = 6,
    score_threshold: float = 0.5,
) -> None:
    """Draw ground truth beside detections, for the first images that have objects."""
    chosen = [k for k, objects in enumerate(coco.objects) if objects][:images]
    labels = {category: label for label, category in enumerate(coco.category_ids)}
    by_image: dict[int | str, list[dict]] = {coco.images[k]["id"]: [] for k in chosen}
    for entry in detections:
        if entry["image_id"] in by_image and entry["score"] >= score_threshold:
            by_image[entry["image_id"]].append(entry)
    shown: list[np.ndarray] = []
    truths: list[list[Item]] = []
    found: list[list[Item]] = []
    for k in chosen:
        image = coco.read(k).permute(1, 2, 0).numpy()
        shape = image.shape[:2]
        shown.append(image)
        truths.append(
            [
                true_item(
                    o["category_id"] - 1,
                    _corners(o["bbox"]),
                    o.get("segmentation"),
                    shape,
                    coco.categories,
                    crowd=bool(o["iscrowd"]),
                )
                for o in coco.objects[k]
            ]
        )
        found.append(
            [
                found_item(
                    labels[e["category_id"]],
                    e["score"],
                    _corners(e["bbox"]),
                    decoded_mask(e["segmentation"], shape) if "segmentation" in e else None,
                    coco.categories,
                )
                for e in sorted(by_image[coco.images[k]["id"]], key=lambda e: e["score"])
            ]
        )
    draw_pairs(shown, truths, found, Path(path), score_threshold=score_threshold)


def _corners(box: list) -> list:
    x, y, width, height = box
    return [x, y, x + width, y + height]
