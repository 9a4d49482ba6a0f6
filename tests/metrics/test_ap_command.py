"""evonorm eval ap: what it shows and writes, and in which order."""

import json

import numpy as np
import pytest
from PIL import Image

from evonorm_plugins.metrics import ap
from tests.metrics.coco_cases import random_case
from tests.metrics.test_ap import pycocotools_stats


@pytest.fixture
def files(tmp_path):
    case = random_case(2)
    paths = tmp_path / "gt.json", tmp_path / "dt.json"
    for path, content in zip(paths, case, strict=True):
        path.write_text(json.dumps(content))
    return ("ap", "--gt", paths[0], "--dt", paths[1]), case


def spoil(arguments, which, change):
    path = arguments[2 * which + 2]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_categories_by_ap(files, evaluate):
    arguments, _ = files
    spoil(arguments, 0, lambda truth: [c.update(name="twin") for c in truth["categories"][2:4]])
    status, out, _ = evaluate(*arguments, "--per-category", "--json")
    assert status == 0
    for categories in json.loads(out)["ap_percent_per_category"].values():
        aps = [numbers["AP"] for numbers in categories.values()]
        assert aps[:4] == sorted(aps[:4], reverse=True)
        assert list(categories)[4] == "class 4"  # without ground truth
        assert set(categories) == {"class 0", "class 1", "twin (id 3)", "twin (id 4)", "class 4"}
    _, out, _ = evaluate(*arguments, "--per-category", "--iou", "segm")
    rows = out.split("\n\n")[1].splitlines()
    assert rows[0].split()[:4] == ["segm,", "by", "AP", "AP"]
    assert [row[:11].strip() for row in rows[1:]] == list(categories)


def test_errors(files, evaluate):
    arguments, _ = files
    status, out, _ = evaluate(*arguments, "--errors", "--json")
    assert status == 0
    record = json.loads(out)
    assert record["input"]["evaluator"] == "hotcoco"
    errors = record["errors"]["segm"]
    assert list(errors["counts"]) == list(ap.ERRORS.values())
    assert errors["counts"]["background"] > 100 > errors["ap50_percent_lost"]["background"] > 10
    _, out, _ = evaluate(*arguments, "--errors", "--iou", "segm")
    rows = [line.split() for line in out.split("\n\n")[1].splitlines()]
    assert rows[0] == ["segm", "errors", "number", "AP50", "lost"]
    lost = f"{errors['ap50_percent_lost']['class']:.3f}"
    assert rows[1] == ["class", str(errors["counts"]["class"]), lost]


def test_curves(files, evaluate, tmp_path):
    arguments, case = files
    out, picture = tmp_path / "out.json", tmp_path / "new/curves.png"
    assert evaluate(*arguments, "--plot", picture, "--out", out)[0] == 0
    with Image.open(picture) as image:
        assert image.width > 2 * image.height * 0.9  # boxes beside masks
    curves = json.loads(out.read_text())["curves"]
    assert len(curves["recall"]) == 101
    means = {iou: np.mean(values) for iou, values in curves["segm"].items()}
    stats = pycocotools_stats(*case, "segm")
    expected = [np.mean([*means.values()]), means["0.50"], means["0.75"]]
    np.testing.assert_allclose(expected, stats[:3], rtol=0, atol=1e-12)
    # Both are this command's, and may be replaced.
    assert evaluate(*arguments, "--plot", picture, "--out", out)[0] == 0


def test_a_plot_without_ground_truth(files, evaluate, tmp_path):
    arguments, _ = files
    spoil(arguments, 0, lambda truth: truth["annotations"].clear())
    status, out, _ = evaluate(*arguments, "--plot", tmp_path / "curves.png", "--json")
    assert status == 0
    assert json.loads(out)["curves"]["bbox"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "curves.jpg"], "--plot curves.jpg must end in .png"),
        (["--plot", "/proc/none/curves.png"], "--plot /proc/none/curves.png cannot be written"),
        (["--out", "/proc/none/out.json"], "--out /proc/none/out.json cannot be written"),
        (["--out", "a.png", "--plot", "./a.png"], "--plot and --out name the same file ./a.png"),
        (["--errors", "--evaluator", "pycocotools"], "by hotcoco alone, not by the evaluator"),
        (["--max-dets", "1", 10**30], f"a limit of {10**30} detections is above 2147483647"),
    ],
)
def test_what_cannot_be_is_said_before_the_files_are_read(files, evaluate, options, message):
    arguments, _ = files
    arguments[2].write_text("no JSON")
    status, out, err = evaluate(*arguments, *options)
    assert (status, out) == (2, "")
    assert message in err


def test_the_files_that_are_read_are_not_written_over(files, evaluate):
    arguments, _ = files
    before = arguments[2].read_bytes()
    for option in ("--out", "--plot"):
        link = arguments[2].with_name("link.png")
        link.unlink(missing_ok=True)
        link.symlink_to(arguments[2])
        status, _, err = evaluate(*arguments, option, link, "--force")
        assert status == 2
        assert "is an input, too" in err
    assert arguments[2].read_bytes() == before


@pytest.mark.parametrize("failing", ["protocol.write_json", "ap_plot.save_figure"])
def test_what_was_computed_is_kept_where_the_last_step_fails(
    files, evaluate, tmp_path, monkeypatch, failing
):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"evonorm_plugins.metrics.{failing}", fail)
    arguments, case = files
    out, picture = tmp_path / "out.json", tmp_path / "curves.png"
    status, stdout, err = evaluate(*arguments, "--plot", picture, "--out", out)
    assert status == 1
    assert err.splitlines()[-1] == "error: no space left to write"
    assert f"{pycocotools_stats(*case, 'bbox')[0] * 100:.3f}" in stdout
    assert [out.exists(), picture.exists()] == [failing[0] == "a", failing[0] == "p"]


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (1, lambda found: found[3].update(score=10**400), "'score' is 1000.* detection number 4"),
        (0, lambda t: t["annotations"][3].update(area=10**400), "'area' is 10.* with id 4"),
        (0, lambda t: t["images"][0].update(height=10**30), "has a mask, but its image has height"),
        (1, lambda found: found[5].update(segmentation={"size": [320, 320], "counts": "0é"}),
         "the detection number 6 has run lengths that do not make a mask .*: '0é'"),
        (1, lambda found: found[5]["bbox"].append(1), r"boxes are not 4 finite .*\(number 6\)"),
    ],
)  # fmt: skip
def test_the_entry_and_its_value_are_named(files, evaluate, which, change, message):
    arguments, _ = files
    spoil(arguments, which, change)
    status, out, err = evaluate(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {arguments[2 * which + 2]}: ")
    assert len(err.splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)


def test_sizes_of_images_matter_to_masks_alone(files, evaluate):
    arguments, _ = files
    _, before, _ = evaluate(*arguments, "--iou", "bbox")
    for size in (-5, "x", None, True, 10**30):
        spoil(arguments, 0, lambda truth, size=size: truth["images"][0].update(height=size))
        assert evaluate(*arguments, "--iou", "bbox")[1] == before
