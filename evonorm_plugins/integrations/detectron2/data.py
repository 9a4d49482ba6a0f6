"""Sets in COCO's format in Detectron2: checked, then registered; images that name themselves."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image

from evonorm_plugins.coco.keypoints import check_keypoints
from evonorm_plugins.coco.read import read_json
from evonorm_plugins.coco.train import CocoReport, check_coco
from evonorm_plugins.errors import BrokenImageError, DataError, reason
from evonorm_plugins.integrations.detectron2.evaluators import check_labels
from evonorm_plugins.integrations.detectron2.tasks import class_key, outputs_of, value_of

# The sets that a command line gives.
SPLITS = {"train": "TRAIN", "val": "TEST"}
# Of a registered set: what its metadata name.
_FILES = {
    "json_file": "annotations",
    "image_root": "images",
    "panoptic_json": "panoptic annotations",
    "panoptic_root": "panoptic annotations",
    "sem_seg_root": "label images",
    "image_dir": "images",
    "gt_dir": "annotations",
}


def register_coco(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    masks: bool = True,
    keypoints: bool = False,
    every_category: bool = False,
    content: Any = None,
) -> CocoReport:
    """Check a set with :func:`check_coco`, then register it with Detectron2 under ``name``.

    Registering the same paths again under the same name checks them again and changes nothing.

    Args:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` call it.
        json_file, image_root, masks, every_category, content: as for :func:`check_coco`.
        keypoints: whether every annotation needs keypoints, which the categories name; see
            :func:`check_keypoints`.

    Returns:
        CocoReport

    Raises:
        DataError: the set cannot be used, or ``name`` stands for other paths.
    """
    if content is None:
        content = read_json(json_file, "annotation file")
    report = check_coco(
        json_file, image_root, masks=masks, every_category=every_category, content=content
    )
    metadata = {}
    if keypoints:
        named = check_keypoints(content, os.fspath(json_file))
        metadata = {"keypoint_names": named.names, "keypoint_flip_map": named.flip_map}
    # Absolute, so that a later change of directory does not matter.
    new = os.path.abspath(json_file), os.path.abspath(image_root)
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        old = [known.get(key) for key in ("json_file", "image_root")]
        if any(a is None or os.path.abspath(a) != b for a, b in zip(old, new, strict=True)):
            raise DataError(
                f"data set name {name!r} is taken by {old[0] or 'a set that is no COCO file'} with "
                f"images in {old[1]}, so {new[0]} with images in {new[1]} needs another name"
            )
    else:
        register_coco_instances(name, metadata, *new)
    return report


def set_datasets(
    cfg: CfgNode, split: str, json_file: str, image_root: str, **options: Any
) -> CocoReport:
    """Register a set for training ("train") or evaluation ("val"), and name it in a config.

    Args:
        options: of :func:`register_coco`.

    Returns:
        CocoReport

    Raises:
        DataError: the set cannot be used, or has more categories than the model.
    """
    name = f"evonorm_{split}"
    learns = outputs_of(cfg) or ("instances",)
    report = register_coco(
        name,
        json_file,
        image_root,
        masks=cfg.MODEL.MASK_ON and "instances" in learns,
        **options,
    )
    setattr(cfg.DATASETS, SPLITS[split], (name,))
    if "instances" not in learns:
        return report
    key = class_key(cfg, "instances")
    check_classes(json_file, report, key, value_of(cfg, key))
    return report


def check_classes(json_file: str, report: CocoReport, key: str, classes: int) -> None:
    """Raise DataError where a set has more categories than a model, whose number ``key`` sets."""
    if (needed := len(report.instances)) > classes:
        raise DataError(
            f"{json_file} has {needed} categories, {key} is {classes}; set it to {needed}"
        )


def check_registered(cfg: CfgNode, split: str) -> None:
    """Raise DataError where a set that a config names is not there."""
    key = SPLITS[split]
    check_names(getattr(cfg.DATASETS, key), f"DATASETS.{key}", split)


def check_names(names: Sequence[str], key: str, split: str) -> None:
    """Raise DataError, which names the config's ``key``, where a set is not there."""
    for name in names:
        if name not in DatasetCatalog.list():
            raise DataError(f"{key}: no dataset is registered as {name!r}")
        for what, path in _files_of(name):
            if "://" not in path and not os.path.exists(path):
                other = ""
                if MetadataCatalog.get(name).get("evaluator_type") == "coco":
                    other = f" or give --{split}-json and --{split}-images"
                raise DataError(
                    f"the dataset {name} has no {what} at {path}; set DETECTRON2_DATASETS{other}"
                )


def _files_of(name: str) -> Iterator[tuple[str, str]]:
    """What there must be of a set: what it is called, and where."""
    known = MetadataCatalog.get(name)
    for key, what in _FILES.items():
        if path := known.get(key):
            yield what, path
    if known.get("evaluator_type") == "pascal_voc":
        yield "list of images", os.path.join(known.dirname, "ImageSets/Main", f"{known.split}.txt")
        yield "annotations", os.path.join(known.dirname, "Annotations")
        yield "images", os.path.join(known.dirname, "JPEGImages")


class NamingMapper:
    """Detectron2's mapper of images, whose errors name the file.

    Raises:
        BrokenImageError: the image, or the image of its labels, cannot be read.
        DataError: it is not of the size that the annotations give, or a label is no class.
    """

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        if not is_train and cfg.MODEL.KEYPOINT_ON:
            # It would ask the training sets for their keypoints, and they need not be there.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        self.mapper = DatasetMapper(cfg, is_train)
        head = cfg.MODEL.SEM_SEG_HEAD
        self.classes, self.ignored = head.NUM_CLASSES, head.IGNORE_VALUE
        self.learns_labels = is_train and "sem_seg" in (outputs_of(cfg) or ())

    def __call__(self, record: dict) -> dict | None:
        try:
            mapped = self.mapper(record)
        except (OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError to Pillow
            raise BrokenImageError(
                f"{_unreadable(record)} cannot be read as an image: {reason(error)}"
            ) from None
        except (AssertionError, ValueError) as error:
            raise DataError(f"{record['file_name']}: {_sizes(record) or reason(error)}") from None
        if self.learns_labels and "sem_seg" in mapped:
            labels = mapped["sem_seg"].numpy()
            check_labels(labels, record["sem_seg_file_name"], self.classes, self.ignored)
        return mapped


def _unreadable(record: dict) -> str:
    labels = record.get("sem_seg_file_name")
    if labels:
        try:
            read_image(record["file_name"])
        except (OSError, SyntaxError):
            return record["file_name"]
        return labels
    return record["file_name"]


def _sizes(record: dict) -> str | None:
    """What is wrong with the label image, which Detectron2 asserts without words."""
    if "sem_seg_file_name" not in record:
        return None
    image, labels = (read_image(record[k]).shape[:2] for k in ("file_name", "sem_seg_file_name"))
    if image == labels:
        return None
    return f"its label image {record['sem_seg_file_name']} is {labels}, the image {image} (H, W)"
