"""Sets in COCO's format in Detectron2: checked, then registered; images that name themselves."""

import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from evonorm_plugins.coco.train import CocoReport, check_coco
from evonorm_plugins.errors import BrokenImageError, DataError, reason

# The sets that a command line gives.
SPLITS = {"train": "TRAIN", "val": "TEST"}


def register_coco(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    masks: bool = True,
    every_category: bool = False,
    content: Any = None,
) -> CocoReport:
    """Check a set with :func:`check_coco`, then register it with Detectron2 under ``name``.

    Registering the same paths again under the same name checks them again and changes nothing.

    Args:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` call it.
        json_file, image_root, masks, every_category, content: as for :func:`check_coco`.

    Returns:
        CocoReport

    Raises:
        DataError: the set cannot be used, or ``name`` stands for other paths.
    """
    report = check_coco(
        json_file, image_root, masks=masks, every_category=every_category, content=content
    )
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
        register_coco_instances(name, {}, *new)
    return report


def set_datasets(cfg: CfgNode, split: str, json_file: str, image_root: str, **options: Any) -> None:
    """Register a set for training ("train") or evaluation ("val"), and name it in a config.

    Args:
        options: of :func:`register_coco`.

    Raises:
        DataError: the set cannot be used, or has more categories than the model.
    """
    name = f"evonorm_{split}"
    report = register_coco(name, json_file, image_root, masks=cfg.MODEL.MASK_ON, **options)
    setattr(cfg.DATASETS, SPLITS[split], (name,))
    part = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    classes, needed = cfg.MODEL[part].NUM_CLASSES, len(report.instances)
    if needed > classes:
        raise DataError(
            f"{json_file} has {needed} categories, MODEL.{part}.NUM_CLASSES is {classes}; "
            f"set it to {needed}"
        )


def check_registered(cfg: CfgNode, split: str) -> None:
    """Raise DataError where a set that a config names is not there."""
    key = SPLITS[split]
    for name in getattr(cfg.DATASETS, key):
        if name not in DatasetCatalog.list():
            raise DataError(f"DATASETS.{key}: no dataset is registered as {name!r}")
        file = getattr(MetadataCatalog.get(name), "json_file", None)
        if file and not os.path.exists(file):
            raise DataError(
                f"the dataset {name} has no annotations at {file}; set DETECTRON2_DATASETS "
                f"or give --{split}-json and --{split}-images"
            )


class NamingMapper:
    """Detectron2's mapper of images, whose errors name the file.

    Raises:
        BrokenImageError: the image cannot be read.
        DataError: it is not of the size that the annotations give.
    """

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        self.mapper = DatasetMapper(cfg, is_train)

    def __call__(self, record: dict) -> dict | None:
        try:
            return self.mapper(record)
        except (OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError to Pillow
            raise BrokenImageError(
                f"{record['file_name']} cannot be read as an image: {reason(error)}"
            ) from None
        except ValueError as error:
            raise DataError(f"{record['file_name']}: {reason(error)}") from None
