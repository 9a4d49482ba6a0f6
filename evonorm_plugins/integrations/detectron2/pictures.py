"""A picture of ground truth beside predictions, from Detectron2's structures."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils, get_detection_dataset_dicts
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode, Instances

from evonorm_plugins.integrations.detectron2.data import NamingMapper
from evonorm_plugins.integrations.pictures import (
    Item,
    check_arguments,
    class_items,
    class_name,
    draw_pairs,
    found_item,
    points_mask,
    true_item,
)

_THRESHOLD = 0.5
_PROPOSALS = 10  # more are not to be told apart


def draw_predictions(
    images: list[np.ndarray],
    ground_truths: list[dict],
    predictions: list[Instances],
    class_names: list[str],
    path: str | os.PathLike,
    *,
    columns: int = 2,
    score_threshold: float = 0.5,
) -> None:
    """Write one PNG with each image twice: ground truth on the left, predictions on the right.

    Args:
        images: arrays (H, W, 3), uint8, RGB; they may differ in size.
        ground_truths: for each image a dict in Detectron2's data set format, of which
            ``annotations`` is used: ``category_id``, ``bbox``, and ``segmentation`` and
            ``iscrowd`` where there are any.
        predictions: for each image Detectron2's ``Instances`` in the image's own size, with
            ``pred_boxes``, ``pred_classes``, ``scores`` and, where there are masks,
            ``pred_masks`` (N, H, W).
        class_names: names by contiguous class index.
        path: the ``.png`` file; written under a temporary name, then renamed.
        columns: images in a row of the picture.
        score_threshold: predictions with a lower score (0 to 1) are not drawn.

    Raises:
        ValueError: the arguments do not fit together; the message says which and how.
    """
    check_arguments(images, ground_truths, predictions, path, columns)
    truths, found = [], []
    for k, (image, truth) in enumerate(zip(images, ground_truths, strict=True)):
        if tuple(predictions[k].image_size) != image.shape[:2]:
            raise ValueError(
                f"predictions {k} are for (H, W) {tuple(predictions[k].image_size)}, image {k} is "
                f"{image.shape[:2]}; resize one to the other first"
            )
        truths.append([_true_item(a, image.shape[:2], class_names) for a in truth["annotations"]])
        found.append(_found_items(predictions[k], class_names, score_threshold))
    draw_pairs(images, truths, found, path, columns=columns, score_threshold=score_threshold)


def _true_item(annotation: dict, shape: tuple[int, int], class_names: list[str]) -> Item:
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    item = true_item(
        annotation["category_id"],
        BoxMode.convert([float(v) for v in annotation["bbox"]], mode, BoxMode.XYXY_ABS),
        annotation.get("segmentation"),
        shape,
        class_names,
        crowd=bool(annotation.get("iscrowd")),
    )
    if not any(annotation.get("keypoints") or ()):
        return item
    points = np.reshape(annotation["keypoints"], (-1, 3))
    return _with_points(item, points[points[:, 2] > 0], shape)


def _with_points(item: Item, points: np.ndarray, shape: tuple[int, int]) -> Item:
    discs = points_mask(points[:, :2], shape)
    # Within a mask they are holes.
    return item._replace(mask=discs if item.mask is None else discs ^ item.mask)


def _found_items(
    predicted: Instances, class_names: list[str], score_threshold: float
) -> list[Item]:
    """Items for the predictions that reach the threshold, the surest last: drawn on top."""
    predicted = predicted.to("cpu")
    predicted = predicted[predicted.scores >= score_threshold]
    predicted = predicted[predicted.scores.argsort()]
    masks = [None] * len(predicted)
    if predicted.has("pred_masks") and len(predicted):
        masks = predicted.pred_masks.numpy().astype(bool)
        if masks.shape[1:] != tuple(predicted.image_size):
            raise ValueError(
                f"pred_masks must be (N, H, W) in the image's size {tuple(predicted.image_size)}, "
                f"got {masks.shape}"
            )
    items = [
        found_item(*values, class_names)
        for values in zip(
            predicted.pred_classes.tolist(),
            predicted.scores.tolist(),
            predicted.pred_boxes.tensor.tolist(),
            masks,
            strict=True,
        )
    ]
    if not predicted.has("pred_keypoints"):
        return items
    points = predicted.pred_keypoints.numpy()
    return [
        _with_points(item, those, predicted.image_size)
        for item, those in zip(items, points, strict=True)
    ]


def picture_predictions(
    cfg: CfgNode, model: torch.nn.Module, dataset: str, path: str | os.PathLike, images: int
) -> None:
    """Draw ground truth beside what a model finds in the first images that have any.

    Args:
        cfg: the configuration, for the images and their proposals.
        model: left in the mode it is in. What it gives is drawn: objects with masks and keypoints,
            proposals, classes of pixels, panoptic segments.
        dataset: name of a registered set, one of ``DATASETS.TEST`` where it has proposals.
        path: the ``.png`` file.
        images: how many.
    """
    files = cfg.DATASETS.PROPOSAL_FILES_TEST
    records = get_detection_dataset_dicts(
        dataset,
        filter_empty=False,
        proposal_files=[files[list(cfg.DATASETS.TEST).index(dataset)]]
        if cfg.MODEL.LOAD_PROPOSALS
        else None,
    )
    picture_records(model, records, NamingMapper(cfg, False), dataset, path, images)


def picture_records(
    model: torch.nn.Module,
    records: list[dict],
    mapper: Callable[[dict], dict | None],
    dataset: str,
    path: str | os.PathLike,
    images: int,
) -> None:
    """:func:`picture_predictions` of ``records`` of a set, whose images ``mapper`` reads."""
    annotated = [r for r in records if r.get("annotations") or "sem_seg_file_name" in r]
    training = model.training
    model.eval()
    shown, truths, found = [], [], []
    for record in (annotated or records)[:images]:
        with torch.no_grad():
            output = model([mapper(record)])[0]
        shown.append(detection_utils.read_image(record["file_name"], format="RGB"))
        truths.append(_truth(record, shown[-1].shape[:2], MetadataCatalog.get(dataset)))
        found.append(_found(output, MetadataCatalog.get(dataset)))
    model.train(training)
    scored = "instances" in output and "panoptic_seg" not in output  # which has its own limits
    draw_pairs(
        shown,
        truths,
        found,
        path,
        score_threshold=_THRESHOLD if scored else None,
        no_truth="no objects" if annotated else "no annotations",
    )


def _truth(record: dict, shape: tuple[int, int], meta: Metadata) -> list[Item]:
    """Classes of pixels, then objects, which are drawn over them."""
    items = []
    if "sem_seg_file_name" in record:
        labels = detection_utils.read_image(record["sem_seg_file_name"], "L").squeeze(2)
        items += class_items(labels, meta.stuff_classes, **_stuff(meta))
    return items + [_true_item(a, shape, meta.thing_classes) for a in record.get("annotations", ())]


def _found(output: dict, meta: Metadata) -> list[Item]:
    labels, segments = output.get("panoptic_seg", (None, None))
    if segments is not None:
        return _segments(labels, segments, meta)
    items = []
    if "sem_seg" in output:
        labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
        items += class_items(labels, meta.stuff_classes, **_stuff(meta))
    if "instances" in output:
        items += _found_items(output["instances"], meta.thing_classes, _THRESHOLD)
    if "proposals" in output:
        surest = output["proposals"].to("cpu")[:_PROPOSALS]  # Detectron2 sorts them
        boxes = surest.proposal_boxes.tensor.tolist()
        items += [Item(k, f"{k + 1}", box) for k, box in reversed(list(enumerate(boxes)))]
    return items


def _stuff(meta: Metadata) -> dict[str, Any]:
    """Colours of stuff follow those of things; "things" are no stuff where both are drawn."""
    things, stuff = meta.get("thing_classes", []), meta.stuff_classes
    return {
        "first": len(things),
        "drawn": {k for k, name in enumerate(stuff) if not (things and name == "things")},
    }


def _segments(image: torch.Tensor, segments: list[dict], meta: Metadata) -> list[Item]:
    labels, items = image.cpu().numpy(), []
    for segment in sorted(segments, key=lambda s: (s["isthing"], s.get("score", 0))):
        index, mask = segment["category_id"], labels == segment["id"]
        if segment["isthing"]:
            label = f"{class_name(meta.thing_classes, index)} {segment['score']:.2f}"
            items.append(Item(index, label, None, mask))
        else:
            name = class_name(meta.stuff_classes, index)
            items.append(Item(_stuff(meta)["first"] + index, name, None, mask))
    return items
