"""Register a COCO-format set with Detectron2, once it is checked."""

import os

from evonorm_plugins.coco.train import check_coco
from evonorm_plugins.errors import DataError


def register_coco(name, json_file, image_root, *, masks=True, every_category=False):
    """Check a set with :func:`check_coco`, then register it with Detectron2 under ``name``.

    Registering the same paths again under the same name checks them again and changes nothing.

    Args:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` call it.
        json_file, image_root, masks, every_category: as for :func:`check_coco`.

    Returns:
        CocoReport

    Raises:
        DataError: the set cannot be used, or ``name`` stands for other paths.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    report = check_coco(json_file, image_root, masks=masks, every_category=every_category)
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
