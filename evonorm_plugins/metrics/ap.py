"""AP and AR of detections, as pycocotools computes them (Lin et al., arXiv 1405.0312).

Average precision at 10 thresholds of IoU (0.50 to 0.95) and 101 of recall; average recall with at
most 1, 10 and 100 detections per image; small, medium and large divided at 32x32 and 96x96 pixels.
"""

import contextlib
import gc
import importlib.util
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from evonorm_plugins.coco.score import CocoData
from evonorm_plugins.errors import InputError, MissingDependencyError

EVALUATORS = ("faster-coco-eval", "pycocotools")
IOU_TYPES = ("bbox", "segm")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = {
    "all": [0, 1e5**2],
    "small": [0, 32**2],
    "medium": [32**2, 96**2],
    "large": [96**2, 1e5**2],
}


@dataclass
class ApResult:
    """precision (T, R, K, A, M) and recall (T, K, A, M), -1 where there are no objects.

    T thresholds of IoU, R of recall, K categories, A areas, M limits of detections per image.
    """

    precision: np.ndarray
    recall: np.ndarray
    max_dets: tuple

    def summary(self, category: int | None = None) -> dict[str, float | None]:
        """``{"AP": ..., "AR100": ...}`` as fractions: pycocotools' 12 numbers, in its order.

        AP and the AR of sizes allow the largest number of detections. None where there is no
        ground truth of that size.

        Args:
            category: index of one category; all if None.
        """
        some = slice(None) if category is None else slice(category, category + 1)
        precision, recall = self.precision[:, :, some], self.recall[:, some]
        at = {0.5: 0, 0.75: 5}
        numbers = {"AP": _mean(precision[:, :, :, 0, -1])}
        numbers |= {f"AP{t * 100:.0f}": _mean(precision[k, :, :, 0, -1]) for t, k in at.items()}
        for a, area in enumerate(AREAS):
            if a:
                numbers[f"AP{area[0]}"] = _mean(precision[:, :, :, a, -1])
        for m, limit in enumerate(self.max_dets):
            numbers[f"AR{limit}"] = _mean(recall[:, :, 0, m])
        for a, area in enumerate(AREAS):
            if a:
                numbers[f"AR{area[0]}"] = _mean(recall[:, :, a, -1])
        return numbers


def _mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else None


def pick_evaluator(name: str | None = None) -> str:
    """The evaluator to use; faster-coco-eval, which gives the same numbers, where it is installed.

    Raises:
        InputError: unknown, or not installed.
    """
    modules = {"faster-coco-eval": "faster_coco_eval", "pycocotools": "pycocotools"}
    if name is None:
        present = [n for n in EVALUATORS if importlib.util.find_spec(modules[n])]
        if not present:
            raise MissingDependencyError("pycocotools")
        return present[0]
    if name not in modules:
        raise InputError(f"evaluator {name!r} is not one of {', '.join(EVALUATORS)}")
    if not importlib.util.find_spec(modules[name]):
        raise MissingDependencyError(name)
    return name


def average_precision(
    data: CocoData,
    iou_type: str = "bbox",
    *,
    max_dets: Iterable[int] = (1, 10, 100),
    evaluator: str | None = None,
) -> ApResult:
    """Evaluate detections against ground truth.

    Args:
        data: :class:`~evonorm_plugins.coco.score.CocoData`; read with ``masks=True`` for
            ``"segm"``.
        iou_type: what is compared: "bbox" or "segm".
        max_dets: rising limits of detections per image and category.
        evaluator: one of :data:`EVALUATORS`; None picks.

    Returns:
        ApResult

    Raises:
        InputError: an option makes no sense.
    """
    if iou_type not in IOU_TYPES:
        raise InputError(f"IoU of {iou_type!r} is not one of {', '.join(IOU_TYPES)}")
    max_dets = check_limits(max_dets)
    functions = {"faster-coco-eval": _faster_coco_eval, "pycocotools": _pycocotools}
    evaluate = functions[pick_evaluator(evaluator)]
    shape = len(IOU_THRESHOLDS), len(data.categories), len(AREAS), len(max_dets)
    recall = -np.ones(shape)
    precision = -np.ones((shape[0], len(RECALL_THRESHOLDS), *shape[1:]))
    objects, found = _by_category(data.objects), _by_category(data.found)
    with _without_garbage_collector():
        # One category at a time: what an evaluator does with the many pairs of an image and a
        # category that has neither objects nor detections there takes longer than all the rest.
        for k in range(len(data.categories)):
            if objects[k + 1]:
                precision[:, :, k], recall[:, k] = evaluate(
                    data, k + 1, objects[k + 1], found[k + 1], iou_type, max_dets
                )
    return ApResult(precision, recall, max_dets)


def check_limits(max_dets: Iterable[int]) -> tuple[int, ...]:
    """Limits of detections as a tuple; raises InputError unless they are positive and rise."""
    max_dets = tuple(max_dets)
    if not max_dets or min(max_dets) < 1 or sorted(set(max_dets)) != list(max_dets):
        raise InputError(f"limits of detections {max_dets} must be positive and rise")
    return max_dets


def _by_category(entries: Iterable[dict]) -> dict[int, list[dict]]:
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["category_id"]].append(dict(entry))  # evaluators write into them
    return groups


@contextlib.contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Millions of small objects are made and none is in a cycle; looking for some takes seconds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _dataset(data: CocoData, category: int, entries: list[dict], images: set) -> dict[str, list]:
    return {
        "images": [image for image in data.images if image["id"] in images],
        "categories": [{"id": category, "name": data.categories[category - 1]}],
        "annotations": entries,
    }


def _faster_coco_eval(
    data: CocoData,
    category: int,
    objects: list[dict],
    found: list[dict],
    iou_type: str,
    max_dets: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    import warnings

    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    images = {entry["image_id"] for entry in (*objects, *found)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of id 0: coco_data has said it
        sets = [COCO(_dataset(data, category, e, images)) for e in (objects, found)]
        return _evaluated(COCOeval_faster(*sets, iou_type), max_dets)


def _pycocotools(
    data: CocoData,
    category: int,
    objects: list[dict],
    found: list[dict],
    iou_type: str,
    max_dets: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = {entry["image_id"] for entry in (*objects, *found)}
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for entries in (objects, found):
            coco = COCO()
            coco.dataset = _dataset(data, category, entries, images)
            coco.createIndex()
            sets.append(coco)
        return _evaluated(COCOeval(*sets, iou_type), max_dets)


def _evaluated(evaluation: Any, max_dets: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, A, M) and recall (T, A, M) of one category, by pycocotools' interface."""
    params = evaluation.params
    params.maxDets = list(max_dets)
    params.iouThrs, params.recThrs = IOU_THRESHOLDS, RECALL_THRESHOLDS
    params.areaRng, params.areaRngLbl = list(AREAS.values()), list(AREAS)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0], evaluation.eval["recall"][:, 0]
