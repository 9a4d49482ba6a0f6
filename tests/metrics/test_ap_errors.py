"""evonorm eval ap --errors: the kinds of errors as TIDE defines them (arXiv 2008.08115).

tidecv 1.0.1 gives the same numbers for these sets, but where it is said.
"""

import pytest

from evonorm_plugins.coco.score import coco_data
from evonorm_plugins.errors import InputError, MissingDependencyError
from evonorm_plugins.metrics.ap import average_precision, pick_evaluator

KINDS = ["class", "localisation", "both", "duplicate", "background", "missed"]
LEFT, RIGHT, BELOW = [0, 0, 100, 100], [200, 200, 100, 100], [0, 200, 50, 50]
PART = [200, 200, 100, 30]  # IoU 0.3 with RIGHT
ELSEWHERE = [300, 0, 50, 50]
FIRST, SECOND = (LEFT, 0.9), (RIGHT, 0.8)  # the two objects that are always there, found


def objects(*boxes, **changes):
    entries = enumerate(((LEFT, 1), (RIGHT, 1), *boxes), 1)
    annotations = [
        {"id": k, "image_id": 1, "category_id": category, "bbox": box, "area": box[2] * box[3]}
        for k, (box, category) in entries
    ]
    annotations[-1].update(changes)
    return annotations


def found(*entries):
    """``(box, score)`` or ``(box, score, category)`` as detections."""
    keys = ("bbox", "score", "category_id")
    return [
        {"image_id": 1, "category_id": 1} | dict(zip(keys, entry, strict=False))
        for entry in entries
    ]


def errors_of(annotations, detections):
    truth = {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }
    return average_precision(coco_data(truth, detections), errors=True).errors


@pytest.mark.parametrize(
    ("kind", "more", "detections", "cost"),
    [
        ("class", [(BELOW, 2)], [FIRST, (RIGHT, 0.95, 2), (BELOW, 0.9, 2)], 100.5 / 202),
        ("localisation", [], [FIRST, (PART, 0.95)], 1 - 51 / 202),
        ("both", [(BELOW, 2)], [FIRST, SECOND, (PART, 0.95, 2), (BELOW, 0.9, 2)], 1 / 4),
        ("duplicate", [], [FIRST, (LEFT, 0.85), SECOND], 50 / 303),
        ("background", [], [FIRST, (ELSEWHERE, 0.95), SECOND], 1 / 3),
        ("missed", [], [FIRST], 50 / 101),
        (None, [], [FIRST, SECOND], 0),
    ],
)
def test_each_kind_alone(kind, more, detections, cost):
    """``cost`` is by hand: of AP50 at 101 thresholds of recall, the mean of one or two classes."""
    errors = errors_of(objects(*more), found(*detections))
    assert errors.counts == {k: int(k == kind) for k in KINDS}
    assert list(errors.costs) == [*KINDS, "false positives", "false negatives"]
    for k in KINDS:
        assert errors.costs[k] == pytest.approx(cost if k == kind else 0, abs=1e-9), k


def test_within_a_crowd_nothing_is_an_error():
    """tidecv counts it as background, which costs nothing."""
    annotations = objects((BELOW, 1), iscrowd=1)
    errors = errors_of(annotations, found(FIRST, SECOND, ([5, 205, 20, 20], 0.99)))
    assert set(errors.counts.values()) == {0}
    assert max(errors.costs.values()) == pytest.approx(0, abs=1e-9)


def test_an_object_that_another_error_covers_is_not_missed():
    errors = errors_of(objects(), found(FIRST, (RIGHT, 0.8, 2), (PART, 0.7)))
    assert errors.counts == dict.fromkeys(KINDS, 0) | {"class": 1, "localisation": 1}
    assert errors.costs["false negatives"] == pytest.approx(50 / 101)


def test_who_finds_errors(monkeypatch):
    assert average_precision(coco_data(*_nothing())).errors is None
    with pytest.raises(InputError, match="errors are found by hotcoco alone"):
        pick_evaluator("pycocotools", errors=True)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name if name != "hotcoco" else None
    )
    assert pick_evaluator() == "pycocotools"
    for options in ({"errors": True}, {"name": "hotcoco"}):
        with pytest.raises(MissingDependencyError, match="hotcoco is not installed"):
            pick_evaluator(**options)


def _nothing():
    return {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}, []
