import copy
import json
import logging

import pytest

from evonorm_plugins.coco.train import CocoReport, check_coco
from evonorm_plugins.errors import DataError

TRIANGLE = [[1.0, 1.0, 5.0, 1.0, 1.0, 5.0]]


def annotation(number, image_id, category_id, **changes):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1.0, 1.0, 4.0, 4.0],
        "area": 8.0,
        "iscrowd": 0,
        "segmentation": TRIANGLE,
        **changes,
    }


GOOD = {
    "images": [
        {"id": k, "file_name": name, "height": 10, "width": 12}
        for k, name in ((4, "a.jpg"), (5, "sub/b.jpg"), (6, "c.jpg"), (9, "d.jpg"))
    ],
    "annotations": [
        annotation(1, 4, 3),
        annotation(2, 4, 3),
        annotation(3, 5, 8),
        annotation(7, 6, 8, iscrowd=1, segmentation={"size": [10, 12], "counts": [60, 60]}),
    ],
    "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
}


@pytest.fixture
def root(tmp_path):
    """A folder with the images of GOOD, empty files, and one no annotation speaks of."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg", "unlisted.jpg"):
        (tmp_path / "images" / name).touch()
    return tmp_path


def check(root, change=None, **options):
    """check_coco on GOOD after ``change(content)``."""
    content = copy.deepcopy(GOOD)
    if change:
        change(content)
    (root / "set.json").write_text(json.dumps(content))
    return check_coco(root / "set.json", root / "images", **options)


def error(root, change=None, **options):
    with pytest.raises(DataError) as caught:
        check(root, change, **options)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def setter(kind, index, key, value):
    return lambda content: content[kind][index].__setitem__(key, value)


def remover(kind, index, key):
    return lambda content: content[kind][index].__delitem__(key)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="evonorm_plugins")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "evonorm_plugins"]


# --- what is right ---


def test_report(root, warnings):
    report = check(root)
    assert report == CocoReport(
        images=4,
        images_without_instances=2,  # c has but a crowd, d nothing
        instances={"cat": 2, "dog": 1},
        crowds=1,
        empty_boxes=0,
    )
    assert list(report.instances) == ["cat", "dog"]  # by id, as Detectron2 orders them
    assert warnings() == []


def test_boxes_alone_are_enough_without_masks(root):
    assert "'segmentation'" in error(root, remover("annotations", 1, "segmentation"))
    assert check(root, remover("annotations", 1, "segmentation"), masks=False).images == 4


# --- the file ---


def test_no_annotation_file(root):
    with pytest.raises(DataError, match=r"annotation file .*/none\.json: No such file"):
        check_coco(root / "none.json", root / "images")
    with pytest.raises(DataError, match=r"annotation file .*: Is a directory"):
        check_coco(root / "images", root / "images")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello",
        json.dumps(GOOD).encode()[:-300],
        b"\xff\xd8\xff\xe0 a picture",
    ],
    ids=["empty", "text", "cut off", "binary"],
)
def test_not_json(root, text):
    (root / "set.json").write_bytes(text)
    with pytest.raises(DataError) as caught:
        check_coco(root / "set.json", root / "images")
    start = f"annotation file {root}/set.json ({len(text)} bytes) is not valid JSON: "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith("was its download or copy cut off?")


def test_json_that_is_nested_too_deeply(root):
    (root / "set.json").write_text("[" * 10_000 + "]" * 10_000)
    with pytest.raises(DataError, match=r"set\.json \(20000 bytes\) is nested far deeper than"):
        check_coco(root / "set.json", root / "images")


def test_a_file_of_results(root):
    (root / "set.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds a list; .* \(a list is the format of results\)"):
        check_coco(root / "set.json", root / "images")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_and_empty_lists(root, key):
    others = ", ".join(k for k in GOOD if k != key)
    hint = "; is it a test set, whose annotations are not public?" if key == "annotations" else ""
    message = error(root, lambda c: c.pop(key))
    assert message == f"{root}/set.json has no list {key!r}; its keys are {others}{hint}"
    message = error(root, lambda c: c.update({key: []}))
    assert message == f"{root}/set.json: the list {key!r} is empty, there is nothing to learn"


def test_entry_that_is_no_object(root):
    message = error(root, lambda c: c["annotations"].insert(1, "x"))
    assert message == f"{root}/set.json: annotation number 2 is 'x', not an object"


# --- keys, types, ids ---


@pytest.mark.parametrize(
    ("kind", "key"),
    [("images", k) for k in ("id", "file_name", "height", "width")]
    + [("categories", k) for k in ("id", "name")]
    + [("annotations", k) for k in ("id", "image_id", "category_id", "bbox", "area", "iscrowd")],
)
def test_missing_key(root, kind, key):
    singular = {"images": "image", "categories": "category", "annotations": "annotation"}[kind]
    named = "number 2" if key == "id" else f"with id {GOOD[kind][1]['id']}"
    message = error(root, remover(kind, 1, key))
    count = f"wrong in 1 of {len(GOOD[kind])}"
    assert f"{key!r} is missing in the {singular} {named}, and {count}" in message


def test_missing_area_and_iscrowd_say_what_they_are(root):
    assert "number of pixels of the mask" in error(root, remover("annotations", 0, "area"))
    assert "0 for ordinary objects" in error(root, remover("annotations", 0, "iscrowd"))


def test_wrong_type(root):
    message = error(root, setter("annotations", 2, "category_id", "8"))
    assert "'category_id' is '8' in the annotation with id 3, and wrong in 1 of 4" in message
    assert "must be of type int" in message


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("images", "2 image ids occur more than once: 4, 5"),
        ("annotations", "2 annotation ids occur more than once: 1, 2"),
        ("categories", "2 category ids occur more than once: 8, 3"),
    ],
)
def test_duplicate_ids(root, kind, message):
    assert error(root, lambda c: c[kind].extend(c[kind][:2])).endswith(message)


def test_annotation_id_zero_warns(root, warnings):
    check(root, setter("annotations", 0, "id", 0))
    (message,) = warnings()
    assert "annotation id 0" in message
    assert "number annotations from 1" in message


def test_negative_annotation_id(root):
    message = error(root, setter("annotations", 0, "id", -5))
    assert "1 annotation ids are negative: -5" in message


# --- images and references ---


def test_no_image_folder(root):
    check(root)
    with pytest.raises(DataError, match=r"image folder .*/elsewhere is not there"):
        check_coco(root / "set.json", root / "elsewhere")


def test_images_without_file(root):
    (root / "images" / "c.jpg").unlink()
    (root / "images" / "sub" / "b.jpg").unlink()
    message = error(root)
    assert message == (
        f"2 of 4 images of {root}/set.json are not in {root}/images: sub/b.jpg, c.jpg"
    )
    (root / "images" / "sub").rmdir()
    assert error(root) == message


def test_first_few_and_count(root):
    def many(content):
        content["images"] += [
            {"id": k, "file_name": f"{k}.png", "height": 1, "width": 1} for k in range(100, 112)
        ]

    message = error(root, many)
    assert message.startswith("12 of 16 images of ")
    assert message.endswith(": 100.png, 101.png, 102.png, 103.png, 104.png and 7 more")


def test_unknown_image_ids(root):
    def change(content):
        for entry, image_id in zip(content["annotations"], (4, 77, 77, "4"), strict=True):
            entry["image_id"] = image_id

    assert error(root, change) == (
        f"{root}/set.json: 3 of 4 annotations have image_ids that 'images' does not list: "
        "77, '4' ('images' lists 4, 5, 6, 9)"
    )


def test_unknown_category_ids(root):
    message = error(root, setter("annotations", 1, "category_id", 0))
    assert "1 of 4 annotations have category_ids that 'categories' does not list: 0" in message
    assert "('categories' lists 8, 3)" in message


def test_categories_without_instances_warn(root, warnings):
    def change(content):
        content["categories"] += [{"id": 1, "name": "cow"}, {"id": 20, "name": "emu"}]

    assert check(root, change).instances == {"cow": 0, "cat": 2, "dog": 1, "emu": 0}
    (message,) = warnings()
    assert message.endswith("2 of 4 categories have no instances: cow, emu")


# --- boxes and masks ---


@pytest.mark.parametrize(
    "box",
    [
        [1, 1, -4, 4],
        [1, 1, 4, float("nan")],
        [float("inf"), 1, 4, 4],
        [1, 1, 4],
        [],
        [1, 1, 4, "4"],
    ],
    ids=str,
)
def test_bad_boxes(root, box):
    message = error(root, setter("annotations", 2, "bbox", box))
    assert "1 of 4 boxes are not 4 finite numbers x, y, width, height" in message
    assert message.endswith(f": {box} (id 3)")


def test_boxes_of_size_zero_warn_and_do_not_count(root, warnings):
    report = check(root, setter("annotations", 0, "bbox", [1, 1, 3.5, 0]))
    assert report.empty_boxes == 1
    assert report.instances == {"cat": 1, "dog": 1}
    (message,) = warnings()
    assert "1 of 4 boxes have width or height 0" in message
    assert message.endswith(": [1, 1, 3.5, 0] (id 1)")


def test_nothing_but_crowds_and_empty_boxes(root):
    def change(content):
        for entry in content["annotations"][:3]:
            entry["bbox"] = [0, 0, 0, 0]

    assert "all 4 annotations are crowds or have boxes of size 0" in error(root, change)


@pytest.mark.parametrize(
    "mask", [[], None, [[1.0, 2.0, 3.0, 4.0]], [[1, 2, 3, 4, 5, 6, 7]], "rle", {"size": [1, 1]}]
)
def test_bad_masks(root, mask):
    message = error(root, setter("annotations", 1, "segmentation", mask))
    assert "1 of 4 annotations have no 'segmentation'" in message
    assert ": id 2; the first is " in message
    assert "MODEL.MASK_ON False" in message


def test_rle_of_another_size_and_runs_that_make_no_mask(root):
    rle = {"size": [12, 10], "counts": [60, 60]}
    message = error(root, setter("annotations", 3, "segmentation", rle))
    assert "the annotation id 7 has a mask of (height, width) [12, 10], its image is [10, 12]" in (
        message
    )
    rle = {"size": [10, 12], "counts": "0000"}
    message = error(root, setter("annotations", 3, "segmentation", rle))
    assert "the annotation id 7 has run lengths that do not make a mask" in message


def test_one_polygon_of_several_is_enough(root):
    polygons = [[1.0, 2.0, 3.0, 4.0], *TRIANGLE]
    assert check(root, setter("annotations", 1, "segmentation", polygons)).images == 4


def test_sizes_of_images(root):
    message = error(root, setter("images", 0, "height", 0))
    assert "'height' is 0 in the image with id 4" in message


def test_ignore(root):
    check(root, setter("annotations", 1, "ignore", 0))
    message = error(root, setter("annotations", 1, "ignore", 1))
    assert "1 annotations have 'ignore', which is not supported: ids 2" in message
