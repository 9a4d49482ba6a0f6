"""A picture of ground truth beside predictions, from Detectron2's structures."""

import os

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode, Instances

from evonorm_plugins.integrations.pictures import (
    Item,
    check_arguments,
    draw_pairs,
    found_item,
    true_item,
)


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
    return true_item(
        annotation["category_id"],
        BoxMode.convert([float(v) for v in annotation["bbox"]], mode, BoxMode.XYXY_ABS),
        annotation.get("segmentation"),
        shape,
        class_names,
        crowd=bool(annotation.get("iscrowd")),
    )


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
    return [
        found_item(*values, class_names)
        for values in zip(
            predicted.pred_classes.tolist(),
            predicted.scores.tolist(),
            predicted.pred_boxes.tensor.tolist(),
            masks,
            strict=True,
        )
    ]


def picture_predictions(
    cfg: CfgNode, model: torch.nn.Module, dataset: str, path: str | os.PathLike, images: int
) -> None:
    """Draw ground truth beside what a model finds in the first images that have objects.

    Args:
        cfg: the configuration, for the size of images.
        model: left in the mode it is in.
        dataset: name of a registered set.
        path: the ``.png`` file.
        images: how many.
    """
    dicts = [d for d in DatasetCatalog.get(dataset) if d["annotations"]][:images]
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    training = model.training
    model.eval()
    shown, predictions = [], []
    for record in dicts:
        image = detection_utils.read_image(record["file_name"], format="RGB")
        ordered = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
        tensor = torch.from_numpy(resized.astype("float32").transpose(2, 0, 1).copy())
        height, width = image.shape[:2]
        with torch.no_grad():
            output = model([{"image": tensor, "height": height, "width": width}])[0]
        shown.append(image)
        predictions.append(output["instances"])
    model.train(training)
    classes = MetadataCatalog.get(dataset).thing_classes
    draw_predictions(shown, dicts, predictions, classes, path)
