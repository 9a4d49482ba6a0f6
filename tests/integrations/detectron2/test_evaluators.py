"""AP in training: the engine of evonorm eval ap in Detectron2's evaluator, with its numbers."""

import json
from collections import defaultdict

import numpy as np
import pytest

from evonorm_plugins.integrations.detectron2 import evaluators
from tests.metrics.coco_cases import random_case

pytestmark = pytest.mark.detectron2


@pytest.fixture
def registered(tmp_path):
    """A function that registers a ground truth and returns its name."""
    from detectron2.data import MetadataCatalog

    names = []

    def register(ground_truth):
        path = tmp_path / f"{len(names)}.json"
        path.write_text(json.dumps(ground_truth))
        names.append(f"{tmp_path.name}/{path.name}")
        categories = ground_truth["categories"]
        MetadataCatalog.get(names[-1]).set(
            json_file=str(path),
            thing_classes=[c["name"] for c in categories],
            thing_dataset_id_to_contiguous_id={c["id"]: k for k, c in enumerate(categories)},
        )
        return names[-1]

    yield register
    for name in names:
        MetadataCatalog.remove(name)


def evaluated(evaluator, ground_truth, detections, **options):
    """What an evaluator says of detections in COCO's format."""
    ranks = {c["id"]: k for k, c in enumerate(ground_truth["categories"])}
    by_image = defaultdict(list)
    for entry in detections:
        by_image[entry["image_id"]].append({**entry, "category_id": ranks[entry["category_id"]]})
    evaluator.reset()
    for image in ground_truth["images"]:
        found = {"image_id": image["id"], "instances": by_image[image["id"]]}
        evaluator._predictions.append(found)
    return evaluator.evaluate(**options)


def both(name, case, **options):
    """What our evaluator and Detectron2's say."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.DATASETS.TEST = (name,)
    ours, theirs = evaluators.build_evaluator(cfg, name), evaluators.COCOEvaluator(name)
    ours._output_dir = None
    return [evaluated(evaluator, *case, **options) for evaluator in (ours, theirs)]


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for task, numbers in ours.items():
        assert list(numbers) == list(theirs[task])
        np.testing.assert_allclose(
            [*numbers.values()], [*theirs[task].values()], rtol=0, atol=1e-10, equal_nan=True
        )


@pytest.mark.parametrize("first_id", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_detectron2(registered, seed, first_id, monkeypatch):
    case = random_case(seed, images=8, first_id=first_id, gap=2)
    name = registered(case[0])
    monkeypatch.setattr(evaluators, "average_precision", spy := Spy(evaluators.average_precision))
    ours, theirs = both(name, case)
    assert_same(ours, theirs)
    assert spy.calls == 2
    assert ours["bbox"]["AP"] > 1
    assert {"AP-class 0", "APs"} <= set(ours["segm"])


class Spy:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)


def test_nothing_found(registered):
    truth, _ = random_case(0, images=3)
    ours, theirs = both(registered(truth), (truth, []))
    assert_same(ours, theirs)
    assert np.isnan(ours["bbox"]["AP"])


def test_what_the_engine_does_not_take_is_evaluated_by_detectron2(registered, caplog, monkeypatch):
    case = random_case(1, images=6, masks=False)
    name = registered(case[0])
    monkeypatch.setattr(evaluators, "average_precision", spy := Spy(evaluators.average_precision))
    assert_same(*both(name, case, img_ids=[1, 2, 5]))
    monkeypatch.setattr(evaluators, "pick_evaluator", lambda: "pycocotools")
    assert_same(*both(name, case))
    monkeypatch.undo()
    case[0]["annotations"][0]["iscrowd"] = 2
    assert_same(*both(registered(case[0]), case))
    assert spy.calls == 0
    assert "'iscrowd' is 2" in caplog.text
    assert "evaluated by Detectron2 as it is" in caplog.text
