"""All 12 numbers of pycocotools, on ground truth and detections with everything in them."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evonorm_plugins.coco.rle import first_bad_rle
from evonorm_plugins.coco.score import coco_data
from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics.ap import EVALUATORS, average_precision
from tests.metrics.coco_cases import random_case, varied_case


def pycocotools_stats(ground_truth, detections, iou_type, max_dets=(1, 10, 100)):
    """What a script that follows pycocotools' demo prints."""
    ground_truth, detections = copy.deepcopy(ground_truth), copy.deepcopy(detections)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), iou_type)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def summary(ground_truth, detections, iou_type, **options):
    data = coco_data(ground_truth, detections, masks=iou_type == "segm")
    return average_precision(data, iou_type, **options).summary()


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("first_id", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_twelve_numbers(seed, first_id, iou_type, evaluator):
    case = random_case(seed, first_id=first_id)
    ours = summary(*case, iou_type, evaluator=evaluator)
    theirs = pycocotools_stats(*case, iou_type)
    assert 0.02 < theirs[0] < 0.9
    assert list(ours) == [
        *("AP", "AP50", "AP75", "APs", "APm", "APl"),
        *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    ]
    np.testing.assert_allclose(list(ours.values()), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(40))
def test_precision_and_recall_of_varied_cases(seed, iou_type):
    """Masks of all kinds, ids with gaps, other limits of detections, no detections at all."""
    ground_truth, detections, max_dets = varied_case(seed)
    data = coco_data(ground_truth, detections, masks=iou_type == "segm")
    ours, theirs = (
        average_precision(data, iou_type, max_dets=max_dets, evaluator=evaluator)
        for evaluator in EVALUATORS
    )
    np.testing.assert_allclose(ours.precision, theirs.precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall, theirs.recall, rtol=0, atol=1e-12)
    if detections and len(max_dets) == 3:
        expected = pycocotools_stats(ground_truth, detections, iou_type, max_dets)
        numbers = [-1 if value is None else value for value in ours.summary().values()]
        known = slice(max_dets[-1] != 100, None)  # its first number is -1 without 100
        np.testing.assert_allclose(numbers[known], expected[known], rtol=0, atol=1e-12)


def test_cases_hold_what_is_difficult():
    ground_truth, detections = random_case(0)
    annotated = {a["image_id"] for a in ground_truth["annotations"]}
    assert len(annotated) < len(ground_truth["images"])
    assert any(a["iscrowd"] for a in ground_truth["annotations"])
    assert len({d["score"] for d in detections}) < len(detections) / 10
    per_image = [d["image_id"] for d in detections]
    assert max(map(per_image.count, annotated)) > 100


def test_masks_without_boxes_are_as_large_as_the_mask():
    ground_truth, detections = random_case(5)
    for detection in detections:
        del detection["bbox"]
    ours = summary(ground_truth, detections, "segm")
    theirs = pycocotools_stats(ground_truth, detections, "segm")
    np.testing.assert_allclose(list(ours.values()), theirs, rtol=0, atol=1e-12)


def test_mask_areas_are_those_of_detectron2():
    ground_truth, detections = random_case(5)
    data = coco_data(ground_truth, detections, masks=True, mask_areas=True)
    ours = average_precision(data, "segm").summary()
    for detection in detections:
        del detection["bbox"]  # as Detectron2 does before it evaluates masks
    theirs = pycocotools_stats(ground_truth, detections, "segm")
    np.testing.assert_allclose(list(ours.values()), theirs, rtol=0, atol=1e-12)
    assert ours != summary(*random_case(5), "segm")


def test_more_than_100_detections():
    case = random_case(3)
    ours = summary(*case, "bbox", max_dets=(1, 10, 300))
    theirs = pycocotools_stats(*case, "bbox", (1, 10, 300))
    # Its first number is -1 where 100 is not among the limits; the others are of the last one.
    assert theirs[0] == -1
    np.testing.assert_allclose(list(ours.values())[1:], theirs[1:], rtol=0, atol=1e-12)
    assert ours["AP"] > 0
    assert list(ours)[6:9] == ["AR1", "AR10", "AR300"]


def test_categories_are_those_of_pycocotools_alone():
    ground_truth, detections = random_case(1)
    result = average_precision(coco_data(ground_truth, detections), "bbox")
    for k, category in enumerate(ground_truth["categories"][:2]):
        alone = copy.deepcopy(ground_truth)
        alone["categories"] = [category]
        of = [[x for x in some if x["category_id"] == category["id"]] for some in
              (ground_truth["annotations"], detections)]  # fmt: skip
        alone["annotations"] = of[0]
        theirs = pycocotools_stats(alone, of[1], "bbox")
        np.testing.assert_allclose(list(result.summary(k).values()), theirs, atol=1e-12)


def square(image, score=None, **changes):
    entry = {"image_id": image, "category_id": 1, "bbox": [10, 10, 50, 50], **changes}
    return entry | ({"score": score} if score is not None else {})


def small_set(annotations):
    return {
        "images": [{"id": k, "height": 100, "width": 100} for k in range(2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": annotations,
    }


def test_perfect_and_half():
    truth = small_set([square(0, id=1, area=2500, iscrowd=0), square(1, id=2, area=2500)])
    perfect = summary(truth, [square(0, 0.9), square(1, 0.8)], "bbox")["AP"]
    assert perfect == pytest.approx(1, abs=1e-15)  # pycocotools has an epsilon in its precision
    # One of two objects found: precision 1 up to recall 0.5, that is at 51 of 101 thresholds.
    assert summary(truth, [square(0, 0.9)], "bbox")["AP"] == pytest.approx(51 / 101, abs=1e-15)


def test_annotation_id_0():
    truth = small_set([square(0, id=0, area=2500, iscrowd=0)])
    found = [square(0, 0.9)]
    data = coco_data(truth, found)
    assert "annotation id 0" in data.warnings[0]
    assert (
        average_precision(data).summary()["AP"] == pycocotools_stats(truth, found, "bbox")[0] == 0
    )
    renumbered = average_precision(coco_data(truth, found, renumber=True)).summary()["AP"]
    # pycocotools has an epsilon in its precision.
    assert renumbered == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_found_and_nothing_there(evaluator):
    truth = small_set([square(0, id=1, area=2500, iscrowd=0)])
    data = coco_data(truth, [])
    assert average_precision(data, evaluator=evaluator).summary()["AP"] == 0.0
    assert "no detections" in data.warnings[0]
    data = coco_data(small_set([]), [square(0, 0.9)])
    assert average_precision(data, evaluator=evaluator).summary()["AP"] is None
    assert "null" in data.warnings[0]


def test_missing_area_and_iscrowd_are_filled_in_and_reported():
    full = small_set([square(0, id=1, area=2500, iscrowd=0)])
    bare = small_set([square(0, id=1)])
    found = [square(0, 0.9)]
    data = coco_data(bare, found)
    assert data.objects.areas[0] == 2500
    assert [w for w in data.warnings if "iscrowd" in w]
    assert [w for w in data.warnings if "no area" in w]
    assert average_precision(data).summary() == summary(full, found, "bbox")


def test_text_ids():
    truth = small_set([square("b", id="x", area=2500, iscrowd=0)])
    truth["images"] = [{"id": "a"}, {"id": "b"}]
    assert summary(truth, [square("b", 0.9)], "bbox")["AP"] == pytest.approx(1, abs=1e-15)


def change(**changes):
    return lambda truth, found: ({**truth, **changes}, found)


def found_with(**changes):
    return lambda truth, found: (truth, [{**found[0], **changes}])


def annotated_with(**changes):
    return lambda truth, found: (
        {**truth, "annotations": [{**truth["annotations"][0], **changes}]},
        found,
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, f: ([t], f), "ground truth is a JSON object"),
        (lambda t, f: (t, {"annotations": f}), "results are a list"),
        (lambda t, f: (t, None), "holds a null"),
        (lambda t, f: (t, [3]), "detection number 1 is 3"),
        (change(images=[]), "'images' is empty"),
        (change(categories=[]), "'categories' is empty"),
        (change(annotations=None), "no list 'annotations'"),
        (change(images=[{"id": 0}, {"id": 0}]), "1 image ids occur more than once: 0"),
        (change(images=[{"id": 0}, {"id": "x"}]), "some are texts, as 'x'"),
        (
            change(images=[{"id": [1]}]),
            r"'id' is \[1\] in the image number 1, .* a whole number or a text",
        ),
        (annotated_with(image_id=7), "image_ids that 'images' does not list: 7"),
        (annotated_with(category_id="1"), "category_ids that 'categories' does not list: '1'"),
        (annotated_with(id=None), "'id' is None in the annotation number 1"),
        (
            annotated_with(iscrowd=2),
            "'iscrowd' is 2 in the annotation with id 1, .* it must be 0 or 1",
        ),
        (annotated_with(area="big"), "'area' is 'big' in the annotation with id 1"),
        (
            annotated_with(bbox=[1, 2, 3]),
            r"1 of 1 boxes are not 4 finite numbers .*: \[1, 2, 3\] \(id 1\)",
        ),
        (found_with(image_id=99), "image_ids that 'images' of the ground truth does not list: 99"),
        (found_with(score=float("nan")), "'score' is nan in the detection number 1"),
        (found_with(score=None), "'score' is None in the detection number 1"),
        (found_with(bbox=[0, 0, -5, 5]), "negative size"),
        (found_with(bbox=[0, 0, float("inf"), 5]), "4 finite numbers"),
        (found_with(bbox=None), "has no bbox"),
    ],
)
def test_bad_input_is_named(spoil, message):
    truth = small_set([square(0, id=1, area=2500, iscrowd=0)])
    with pytest.raises(InputError, match=message):
        coco_data(*spoil(truth, [square(0, 0.9)]))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "must be polygons"),
        ([[1, 2, 3, 4]], "must be polygons"),
        ({"size": [100, 100], "counts": [5]}, "must be polygons"),
        ({"size": [50, 50], "counts": [2500]}, r"\[50, 50\], its image is \[100, 100\]"),
    ],
)
def test_bad_masks_are_named(mask, message):
    truth = small_set([square(0, id=1, area=2500, iscrowd=0, segmentation=mask)])
    with pytest.raises(InputError, match=message):
        coco_data(truth, [square(0, 0.9)], masks=True)


def test_options_are_checked():
    data = coco_data(*random_case(0))
    with pytest.raises(InputError, match="rise"):
        average_precision(data, max_dets=(100, 10))
    with pytest.raises(InputError, match="keypoints"):
        average_precision(data, "keypoints")
    with pytest.raises(InputError, match="nothing"):
        average_precision(data, evaluator="nothing")


@pytest.fixture
def files(tmp_path):
    truth, found = random_case(2)
    paths = tmp_path / "gt.json", tmp_path / "dt.json"
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    return paths, (truth, found)


def test_command_line(files, evaluate, tmp_path):
    (gt, dt), case = files
    out = tmp_path / "runs/a/metrics.json"
    status, stdout, _ = evaluate(
        "ap", "--gt", gt, "--dt", dt, "--json", "--per-category", "--out", out
    )
    assert status == 0
    record = json.loads(stdout)
    assert record == json.loads(out.read_text())
    for task in ("bbox", "segm"):
        theirs = pycocotools_stats(*case, task) * 100
        np.testing.assert_allclose(list(record["ap_percent"][task].values()), theirs, atol=1e-10)
    assert set(record["ap_percent_per_category"]["bbox"]) == {f"class {k}" for k in range(5)}
    assert record["ap_percent_per_category"]["bbox"]["class 4"]["AP"] is None
    assert record["protocol"]["n_images"] == 20
    assert record["protocol"]["max_dets"] == [1, 10, 100]
    assert record["command"][:2] == ["evonorm-eval", "ap"]


def test_table_for_people(files, evaluate):
    (gt, dt), case = files
    status, stdout, _ = evaluate("ap", "--gt", gt, "--dt", dt, "--iou", "bbox")
    assert status == 0
    header, row = stdout.splitlines()[:2]
    assert header.split()[:3] == ["percent", "AP", "AP50"]
    assert float(row.split()[1]) == pytest.approx(pycocotools_stats(*case, "bbox")[0] * 100, 1e-3)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1", b"\x00\x01", b'{"images": [', b"null", b"[[]]", b"\xff\xd8", b"[" * 10_000],
    ids=lambda content: str(content[:10]),
)
@pytest.mark.parametrize("which", [0, 1])
def test_broken_files_give_no_traceback(files, evaluate, content, which):
    paths, _ = files
    paths[which].write_bytes(content)
    status, stdout, stderr = evaluate("ap", "--gt", paths[0], "--dt", paths[1])
    assert status == 2
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert str(paths[which]) in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gt", "x.json"], "belong together"),
        ([], "--gt and --dt"),
        (["--gt", "gone.json", "--dt", "gone.json"], "gone.json: No such file"),
        (["--config-file", "x.yaml"], "belong together"),
        (["--gt", "x", "--dt", "y", "--grid", "z.png"], "--grid needs --config-file"),
    ],
)
def test_bad_command_lines(evaluate, arguments, message):
    status, _, stderr = evaluate("ap", *arguments)
    assert status == 2
    assert message in stderr


def test_table_of_detectors(files, evaluate, tmp_path):
    (gt, dt), case = files
    for name, options in (("a", ()), ("b", ()), ("c", ("--max-dets", 1, 10, 50))):
        arguments = ("--gt", gt, "--dt", dt, "--name", "EvoNormS0", *options)
        assert evaluate("ap", *arguments, "--out", tmp_path / f"{name}.json")[0] == 0
    status, out, _ = evaluate("table", tmp_path / "a.json", tmp_path / "b.json")
    assert status == 0
    header, row = out.splitlines()[:2]
    assert header.split()[:4] == ["layer", "runs", "box", "AP"]
    shown = f"{pycocotools_stats(*case, 'bbox')[0] * 100:.1f}"
    assert row.split()[:3] == ["EvoNormS0", "2", f"{shown}/{shown}"]
    status, _, err = evaluate("table", tmp_path / "a.json", tmp_path / "c.json")
    assert status == 2
    assert "max_dets [1, 10, 100] and [1, 10, 50]" in err


def test_run_lengths_are_read_as_pycocotools_writes_them():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    texts, areas = [], []
    for _ in range(60):
        shape = rng.integers(1, 90, 2)
        pixels = np.asfortranarray(rng.random(shape) < rng.choice([0, 0.02, 0.5, 0.98, 1]))
        texts.append(mask.encode(pixels.astype(np.uint8))["counts"].decode())
        areas.append(int(np.prod(shape)))
        assert first_bad_rle(texts, areas) is None
    for k in (0, 31, 59):
        for wrong in (texts[k] + "1", texts[k][:-1] + "o", texts[k][:-1] + "!", "", "é"):
            assert first_bad_rle([*texts[:k], wrong, *texts[k + 1 :]], areas) == k


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_fuzzed_masks_end_in_a_message_or_a_number(evaluator):
    rng = np.random.default_rng(0)
    outcomes = set()
    for seed in range(30):
        truth, found = random_case(seed, images=3)
        for detection in found[::9] if seed % 2 else []:
            letters = list(detection["segmentation"]["counts"])
            letters[rng.integers(len(letters))] = chr(rng.integers(40, 120))
            detection["segmentation"]["counts"] = "".join(letters)
        try:
            assert 0 <= summary(truth, found, "segm", evaluator=evaluator)["AP"] <= 1
            outcomes.add("number")
        except InputError as error:
            outcomes.add(str(error).partition(" that ")[2][:20])
    assert outcomes == {"number", "do not make a mask of"[:20]}


def test_fuzzed_structure_ends_in_a_message_or_a_number(evaluate, files):
    (gt, dt), case = files
    rng = np.random.default_rng(0)
    values = [None, -1, 0, 1e30, "x", [], {}, [[]], [1, 2], True, float("nan")]
    for k in range(150):
        content = copy.deepcopy(list(case))
        node = content[k % 2]
        while True:  # walk down to a random place
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = keys[rng.integers(len(keys))]
            child = node[key]
            if not isinstance(child, dict | list) or not child or rng.random() < 0.15:
                break
            node = child
        node[key] = values[rng.integers(len(values))]
        for path, value in zip((gt, dt), content, strict=True):
            path.write_text(json.dumps(value))
        status, out, err = evaluate("ap", "--gt", gt, "--dt", dt, "--json")
        assert status in (0, 2), err
        assert "Traceback" not in err
        if status == 0:
            json.loads(out)
