"""AP and AR of detections, as pycocotools computes them (Lin et al., arXiv 1405.0312).

Average precision at 10 thresholds of IoU (0.50 to 0.95) and 101 of recall; average recall with at
most 1, 10 and 100 detections per image; small, medium and large divided at 32x32 and 96x96 pixels.
"""

import contextlib
import gc
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from evonorm_plugins.coco.score import CocoData
from evonorm_plugins.coco.shapes import is_size
from evonorm_plugins.errors import InputError, MissingDependencyError

_HIGHEST_LIMIT = 2**31 - 1
EVALUATORS = ("hotcoco", "pycocotools")  # the names of the packages, and of their modules
IOU_TYPES = ("bbox", "segm")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = {
    "all": [0, 1e5**2],
    "small": [0, 32**2],
    "medium": [32**2, 96**2],
    "large": [96**2, 1e5**2],
}
# Kinds of errors: hotcoco's keys, and what they are called here.
ERRORS = {
    "Cls": "class",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
ERRORS_TOGETHER = {"FP": "false positives", "FN": "false negatives"}


@dataclass
class Errors:
    """What is wrong with detections at an IoU of 0.5, by kind (Bolya et al., arXiv 2008.08115).

    ``counts`` has for every kind, a value of :data:`ERRORS`, how many there are; ``costs``, for the
    values of :data:`ERRORS_TOGETHER` too, how much AP50 rises, as a fraction, if all are mended.
    """

    counts: dict[str, int]
    costs: dict[str, float]


@dataclass
class ApResult:
    """precision (T, R, K, A, M) and recall (T, K, A, M), -1 where there are no objects.

    T thresholds of IoU, R of recall, K categories, A areas, M limits of detections per image.
    ``errors`` is None unless they were asked for.
    """

    precision: np.ndarray
    recall: np.ndarray
    max_dets: tuple[int, ...]
    errors: Errors | None = None

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


def pick_evaluator(name: str | None = None, *, errors: bool = False) -> str:
    """The evaluator to use; hotcoco, which gives pycocotools' numbers, where it is installed.

    Args:
        name: the one asked for; None picks.
        errors: whether it is to find :class:`Errors`, which hotcoco alone does.

    Raises:
        InputError: it is unknown, not installed, or does not find errors.
    """
    if name is not None and name not in EVALUATORS:
        raise InputError(f"evaluator {name!r} is not one of {', '.join(EVALUATORS)}")
    if errors:
        if name == "pycocotools":
            raise InputError("errors are found by hotcoco alone, not by the evaluator pycocotools")
        name = "hotcoco"
    present = [n for n in EVALUATORS if importlib.util.find_spec(n)]
    if name not in (None, *present) or not present:
        raise MissingDependencyError(name or "pycocotools")
    return name or present[0]


def average_precision(
    data: CocoData,
    iou_type: str = "bbox",
    *,
    max_dets: Iterable[int] = (1, 10, 100),
    evaluator: str | None = None,
    errors: bool = False,
) -> ApResult:
    """Evaluate detections against ground truth.

    Args:
        data: :class:`~evonorm_plugins.coco.score.CocoData`; read with ``masks=True`` for
            ``"segm"``.
        iou_type: what is compared: "bbox" or "segm".
        max_dets: rising limits of detections per image and category.
        evaluator: one of :data:`EVALUATORS`; None picks.
        errors: whether to say what is wrong, too.

    Returns:
        ApResult

    Raises:
        InputError: an option makes no sense.
    """
    if iou_type not in IOU_TYPES:
        raise InputError(f"IoU of {iou_type!r} is not one of {', '.join(IOU_TYPES)}")
    max_dets = check_limits(max_dets)
    evaluator = pick_evaluator(evaluator, errors=errors)
    shape = len(IOU_THRESHOLDS), len(data.categories), len(AREAS), len(max_dets)
    recall = -np.ones(shape)
    precision = -np.ones((shape[0], len(RECALL_THRESHOLDS), *shape[1:]))
    found, by_pycocotools = None, data.objects.categories
    with without_garbage_collector():
        if evaluator == "hotcoco":
            evaluation = _evaluated(_hotcoco, data, iou_type, max_dets)
            precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
            found = _errors(evaluation.tide_errors()) if errors else None
            # It counts a match of annotation id 0.
            by_pycocotools = by_pycocotools[data.objects.ids == 0]
        # One category at a time: they are independent, and what pycocotools does with the many
        # pairs of an image and a category that is not there takes longer than much of the rest.
        for k in np.unique(by_pycocotools):
            alone = _evaluated(_pycocotools, data.of_category(k), iou_type, max_dets, k).eval
            precision[:, :, k - 1] = alone["precision"][:, :, 0]
            recall[:, k - 1] = alone["recall"][:, 0]
    return ApResult(precision, recall, max_dets, found)


def check_limits(max_dets: Iterable[int]) -> tuple[int, ...]:
    """Limits of detections as a tuple; raises InputError unless they are positive and rise."""
    max_dets = tuple(max_dets)
    if max(max_dets, default=0) > _HIGHEST_LIMIT:
        raise InputError(f"a limit of {max(max_dets)} detections is above {_HIGHEST_LIMIT}")
    if not max_dets or min(max_dets) < 1 or sorted(set(max_dets)) != list(max_dets):
        raise InputError(f"limits of detections {max_dets} must be positive and rise")
    return max_dets


@contextlib.contextmanager
def without_garbage_collector() -> Iterator[None]:
    """Millions of small objects are made and none is in a cycle; looking for some takes seconds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _evaluated(
    build: Callable[[CocoData, str], Any],
    data: CocoData,
    iou_type: str,
    max_dets: tuple[int, ...],
    category: int | None = None,
) -> Any:
    """The ``COCOeval`` that ``build`` makes, accumulated; of one category if it is given."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = build(data, iou_type)
        params = evaluation.params
        params.maxDets = list(max_dets)
        params.iouThrs, params.recThrs = IOU_THRESHOLDS, RECALL_THRESHOLDS
        params.areaRng, params.areaRngLbl = list(AREAS.values()), list(AREAS)
        if category is not None:
            params.catIds = [category]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _hotcoco(data: CocoData, iou_type: str) -> Any:
    from hotcoco import COCO, COCOeval

    objects, found = data.objects, data.found
    assert found.scores is not None  # all detections have one
    truth = COCO.from_arrays(
        _images(data),
        _categories(data),
        objects.images,
        objects.categories,
        objects.boxes,
        ids=objects.ids,
        area=objects.areas,
        iscrowd=objects.crowds,
        segmentation=objects.masks,
    )
    rows = np.column_stack([found.images, found.boxes, found.scores, found.categories])
    results = truth.load_res(rows, segmentation=found.masks)
    results.update_anns(ids=found.ids, area=found.areas)
    return COCOeval(truth, results, iou_type)


def _pycocotools(data: CocoData, iou_type: str) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sets = []
    for columns in (data.objects, data.found):
        coco = COCO()
        coco.dataset = {"images": _images(data), "categories": _categories(data)}
        coco.dataset["annotations"] = columns.rows()
        coco.createIndex()
        sets.append(coco)
    return COCOeval(*sets, iou_type)


def _images(data: CocoData) -> list[dict]:
    """Images without the sizes that are none: only masks need them, and they are checked then."""
    return [
        image if is_size([image["height"], image["width"]]) else {"id": image["id"]}
        for image in data.images
    ]


def _categories(data: CocoData) -> list[dict]:
    return [{"id": k, "name": name} for k, name in enumerate(data.categories, 1)]


def _errors(found: dict[str, Any]) -> Errors:
    named = ERRORS | ERRORS_TOGETHER
    return Errors(
        {ERRORS[key]: found["counts"][key] for key in ERRORS},
        {named[key]: found["delta_ap"][key] for key in named},
    )
