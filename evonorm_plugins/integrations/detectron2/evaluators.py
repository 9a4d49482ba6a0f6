"""Detectron2's evaluators by the type of a test set, as its own training script takes them."""

import importlib
import importlib.util
import os
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    coco_evaluation,
)
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array

from evonorm_plugins.coco.score import coco_data
from evonorm_plugins.errors import BrokenImageError, DataError, RunError, reason
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.metrics.ap import IOU_TYPES, average_precision, pick_evaluator
from evonorm_plugins.text_table import aligned


class Type(NamedTuple):
    """What belongs to an ``evaluator_type``.

    The outputs of a model of which the evaluator reads one, the labels that a set has to learn
    from, and the package that the evaluator imports, if any.
    """

    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    package: str | None = None


TYPES = {
    "coco": Type(("instances", "proposals"), ("instances",)),
    "coco_panoptic_seg": Type(("panoptic_seg",), ("instances", "sem_seg"), "panopticapi"),
    "sem_seg": Type(("sem_seg",), ("sem_seg",)),
    "pascal_voc": Type(("instances",), ("instances",)),
    "lvis": Type(("instances", "proposals"), ("instances",), "lvis"),
    "cityscapes_instance": Type(("instances",), ("instances",), "cityscapesscripts"),
    "cityscapes_sem_seg": Type(("sem_seg",), ("sem_seg",), "cityscapesscripts"),
}


def evaluator_type(dataset: str) -> str:
    """The ``evaluator_type`` of a registered set; "coco" where it has none."""
    return MetadataCatalog.get(dataset).get("evaluator_type", "coco")


def type_of(dataset: str) -> Type:
    """What belongs to the ``evaluator_type`` of a registered set.

    Raises:
        DataError: there is no evaluator for it.
    """
    kind = evaluator_type(dataset)
    if kind not in TYPES:
        raise DataError(
            f"the dataset {dataset} has the evaluator_type {kind!r}; there are evaluators for "
            f"{', '.join(TYPES)}"
        )
    return TYPES[kind]


def build_evaluator(cfg: CfgNode, dataset: str, folder: str | None = None) -> DatasetEvaluator:
    """The evaluators of a test set.

    Args:
        cfg: the configuration.
        dataset: name of a registered set; one without an ``evaluator_type`` is converted to COCO's
            format.
        folder: for what the evaluators write; ``OUTPUT_DIR/inference`` if not given. Where there
            are several test sets, each has a folder of its name in it.

    Raises:
        DataError: there is no evaluator for the set's type.
    """
    folder = folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset)
    type_of(dataset)
    kind = evaluator_type(dataset)
    if kind in ("coco", "coco_panoptic_seg"):
        coco = _CocoEvaluator(
            dataset, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
        )
        if kind == "coco":
            return coco
        panoptic = COCOPanopticEvaluator(dataset, folder)
        return DatasetEvaluators([_semantic(dataset, folder), coco, panoptic])
    if kind == "sem_seg":
        return _semantic(dataset, folder)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset)
    if kind == "lvis":
        return _LVISEvaluator(dataset, output_dir=folder)
    if kind == "cityscapes_instance":
        return _CityscapesInstanceEvaluator(dataset)
    return _CityscapesSemSegEvaluator(dataset)


class _CocoEvaluator(COCOEvaluator):
    """Boxes and masks by the engine of ``evonorm eval ap``, which gives the same numbers."""

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        with mock.patch.object(coco_evaluation, _OF_DETECTRON2.__name__, _evaluate_on_coco):
            super()._eval_predictions(predictions, img_ids)


_OF_DETECTRON2 = coco_evaluation._evaluate_predictions_on_coco


def _evaluate_on_coco(coco_gt: Any, coco_results: list[dict], iou_type: str, **options: Any) -> Any:
    """Detectron2's function of this purpose; an object with its ``stats`` and ``eval``.

    What the engine does not take is left to Detectron2: keypoints, some images of a set, and ground
    truth with mistakes in it. So is everything where the engine is not installed.
    """
    takes = iou_type in IOU_TYPES and options["img_ids"] is None
    if takes and pick_evaluator() == "hotcoco":
        try:
            data = coco_data(
                coco_gt.dataset,
                coco_results,
                masks=iou_type == "segm",
                mask_areas=True,
                names=("the ground truth", "the model's detections"),
            )
            result = average_precision(data, iou_type, max_dets=options["max_dets_per_image"])
            numbers = result.summary()
            table = ([*numbers], ["-" if v is None else f"{v * 100:.3f}" for v in numbers.values()])
            logger.info("%s in percent:\n%s", iou_type, aligned(table, left=()))
            stats = [-1 if value is None else value for value in numbers.values()]
            return SimpleNamespace(stats=stats, eval={"precision": result.precision})
        except DataError as error:
            logger.warning("%s; evaluated by Detectron2 as it is", error)
    return _OF_DETECTRON2(coco_gt, coco_results, iou_type, **options)


def _semantic(dataset: str, folder: str) -> SemSegEvaluator:
    return SemSegEvaluator(
        dataset, distributed=True, output_dir=folder, sem_seg_loading_fn=_Labels(dataset)
    )


class _Labels:
    """Reads label images for ``SemSegEvaluator``, which fails on others without naming them."""

    def __init__(self, dataset: str) -> None:
        meta = MetadataCatalog.get(dataset)
        self.classes, self.ignored = len(meta.stuff_classes), meta.ignore_label

    def __call__(self, path: str, dtype: Any = None) -> np.ndarray:
        try:
            labels = load_image_into_numpy_array(path, dtype=dtype)
        except (OSError, SyntaxError) as error:
            raise BrokenImageError(f"{path} cannot be read as an image: {reason(error)}") from None
        check_labels(labels, path, self.classes, self.ignored)
        return labels


def check_labels(labels: np.ndarray, path: str, classes: int, ignored: int) -> None:
    """Raise DataError where a label image (H, W) holds what is no class."""
    largest = labels[labels != ignored].max(initial=0)
    if labels.ndim != 2 or largest >= classes:
        found = f"the label {largest}" if labels.ndim == 2 else f"the shape {labels.shape}"
        raise DataError(
            f"{path} has {found}; a label image is (H, W) with the classes 0 to {classes - 1} and "
            f"{ignored} for pixels without one"
        )


# Names that NumPy has dropped, and lvis 0.5.3 and cityscapesscripts 2.3.0, the newest, still use.
_OLDER_NUMPY: dict[str, Any] = {"float": float, "in1d": np.isin}
_INSTANCES = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"


class _ByOlderPackage(DatasetEvaluator):
    """An evaluator whose package needs an older NumPy, and ends the program where it fails."""

    def evaluate(self) -> dict:
        lent = {name: value for name, value in _OLDER_NUMPY.items() if not hasattr(np, name)}
        try:
            with mock.patch.multiple(np, create=True, **lent) if lent else nullcontext():
                return super().evaluate()
        except SystemExit:
            raise RunError(
                f"{type(self).__bases__[1].__name__} could not evaluate; its package says why above"
            ) from None


class _LVISEvaluator(_ByOlderPackage, LVISEvaluator):
    pass


class _CityscapesInstanceEvaluator(_ByOlderPackage, CityscapesInstanceEvaluator):
    def evaluate(self) -> dict:
        # They write what nobody reads, a part of it to the current folder, and cannot since
        # NumPy 2.4 counts in numbers of its own.
        with mock.patch.object(importlib.import_module(_INSTANCES), "writeDict2JSON"):
            return super().evaluate()


class _CityscapesSemSegEvaluator(_ByOlderPackage, CityscapesSemSegEvaluator):
    pass


_OF_FACEBOOK = "deeplearning.projects.cityscapesApi"
_SCRIPTS = (
    *("cityscapesscripts", "cityscapesscripts.helpers.labels", _INSTANCES),
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
)


def find_cityscapesscripts() -> None:
    """Let Detectron2 find cityscapesscripts, where they are installed.

    Since its commit 4823082 of December 2024 it imports them by their place in Facebook's own
    repository, which nobody else has. Call it before a Cityscapes set is read.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        return
    modules = {name: importlib.import_module(name) for name in _SCRIPTS}
    parts = _OF_FACEBOOK.split(".")
    for k in range(len(parts)):
        name = ".".join(parts[: k + 1])
        sys.modules.setdefault(name, ModuleType(name))
    for name, module in modules.items():
        sys.modules.setdefault(f"{_OF_FACEBOOK}.{name}", module)
