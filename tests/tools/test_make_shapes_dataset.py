import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "tools" / "make_shapes_dataset.py"
SPEC = importlib.util.spec_from_file_location("make_shapes_dataset", SCRIPT)
shapes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shapes)

SMALL = {"train": 3, "val": 2, "size": 48, "max_shapes": 3, "seed": 7}


def files(folder):
    """Relative path -> bytes of every file below a folder, hidden ones included."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()
    }


def mask_of(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


# --- polygons ---


def test_polygon_of_a_square_and_of_an_l():
    assert shapes.mask_polygons(mask_of("....", ".##.", ".##.")) == [
        [(1, 1), (3, 1), (3, 3), (1, 3)]
    ]
    assert shapes.mask_polygons(mask_of("#.", "##")) == [
        [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 2)]
    ]


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    assert shapes.mask_polygons(mask_of("#.", ".#")) == [
        [(0, 0), (1, 0), (1, 1), (0, 1)],
        [(1, 1), (2, 1), (2, 2), (1, 2)],
    ]


def test_mask_with_a_hole_is_cut_in_two_through_it():
    left, right = shapes.mask_polygons(mask_of("####", "#..#", "####"))
    assert left == [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (2, 2), (2, 3), (0, 3)]
    assert right == [(2, 0), (4, 0), (4, 3), (2, 3), (2, 2), (3, 2), (3, 1), (2, 1)]


def test_polygons_of_random_masks_are_exact_for_pycocotools():
    coco_mask = pytest.importorskip("pycocotools.mask")
    for seed in range(200):  # specks, holes in holes, diagonal touches
        rng = np.random.default_rng(seed)
        h, w = (int(v) for v in rng.integers(1, 16, 2))
        mask = rng.random((h, w)) < rng.uniform(0.1, 0.95)
        mask[rng.integers(h), rng.integers(w)] = True
        polygons = [[float(c) for xy in p for c in xy] for p in shapes.mask_polygons(mask)]
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, h, w))
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
        assert sum(shapes._signed_area(p) for p in shapes.mask_polygons(mask)) == mask.sum()


# --- shapes ---


@pytest.mark.parametrize("label", ["square", "triangle", "star"])
def test_shapes_have_the_area_they_are_meant_to_have(label):
    corners = shapes._corners(label)
    assert len(corners) == {"square": 4, "triangle": 3, "star": 10}[label]
    assert shapes._signed_area([tuple(c) for c in corners]) == pytest.approx(np.pi)
    y, x = np.mgrid[:200, :200] + 0.5 - 100
    assert shapes._inside(corners * 40, x, y).sum() == pytest.approx(np.pi * 40**2, rel=0.02)


def test_inside_of_a_polygon_by_hand():
    y, x = np.mgrid[:3, :4] + 0.5
    triangle = np.array([(0, 0), (4, 0), (0, 4)])
    np.testing.assert_array_equal(
        shapes._inside(triangle, x, y - 1e-6), mask_of("####", "###.", "##..")
    )


def test_masks_of_an_image_do_not_overlap_and_show_enough():
    classes = set()
    for k in range(40):
        pixels, found = shapes.draw_image(np.random.default_rng(k), 64, 6)
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8
        assert 1 <= len(found) <= 6
        assert np.sum([mask for _, mask in found], 0).max() == 1
        # 0.4 of the smallest shape, a circle of radius 5.12 (5 at least), is 32 pixels.
        assert min(mask.sum() for _, mask in found) >= 31
        classes |= {category for category, _ in found}
    assert classes == {0, 1, 2, 3}


def test_the_later_shape_hides_the_earlier_and_is_what_the_pixels_show(monkeypatch):
    low, high = np.zeros((2, 32, 32), bool)
    low[4:20, 4:20] = True  # 256 pixels
    high[10:26, 10:26] = True
    stack = iter([(low, 256), (high, 256)])
    monkeypatch.setattr(shapes, "_place_shape", lambda *_: next(stack))
    rng = next(r for r in map(np.random.default_rng, range(99)) if _draws_two(r))
    _, ((_, first), (_, second)) = shapes.draw_image(rng, 32, 2)
    np.testing.assert_array_equal(second, high)
    np.testing.assert_array_equal(first, low & ~high)


def _draws_two(rng):
    state = rng.bit_generator.state
    two = rng.integers(1, 3) == 2
    rng.bit_generator.state = state
    return two


def test_a_shape_hidden_too_much_is_left_out_and_not_painted(monkeypatch):
    low, high = np.zeros((2, 32, 32), bool)
    low[4:14, 4:14] = True
    high[4:14, 7:17] = True  # leaves 3 of 10 columns, below 0.4
    stack = iter([(low, 100), (high, 100)])
    monkeypatch.setattr(shapes, "_place_shape", lambda *_: next(stack))
    monkeypatch.setattr(shapes, "_background", lambda *_: (np.zeros((32, 32, 3)), np.zeros(3)))
    monkeypatch.setattr(shapes, "_other_colour", lambda *_: np.full(3, 200.0))
    rng = next(r for r in map(np.random.default_rng, range(99)) if _draws_two(r))
    pixels, found = shapes.draw_image(rng, 32, 2)
    assert len(found) == 1
    np.testing.assert_array_equal(found[0][1], high)
    # Shapes are at 160 or above and the background at 0, noise (8) aside.
    np.testing.assert_array_equal(pixels.mean(2) > 80, high)


def test_colours_do_not_tell_the_class():
    by_class = {k: [] for k in range(4)}
    for k in range(150):
        pixels, found = shapes.draw_image(np.random.default_rng(k), 48, 3)
        for category, mask in found:
            by_class[category].append(pixels[mask].mean(0))
    means = np.array([np.mean(c, 0) for c in by_class.values()])
    spreads = np.array([np.std(c, 0) for c in by_class.values()])
    assert np.ptp(means, axis=0).max() < 35
    assert spreads.min() > 45


def test_class_colours_tell_the_class():
    for k in range(30):
        pixels, found = shapes.draw_image(np.random.default_rng(k), 48, 3, class_colours=True)
        for category, mask in found:
            colour = np.median(pixels[mask], 0)
            distances = np.abs(np.array(shapes.CLASS_COLOURS) - colour).max(1)
            assert distances.argmin() == category


# --- the set as written ---


def test_files_and_annotations_fit_together(tmp_path):
    coco_mask = pytest.importorskip("pycocotools.mask")
    paths = shapes.make_shapes_dataset(tmp_path / "set", **SMALL)
    assert paths == {
        "train_json": tmp_path / "set" / "train.json",
        "train_images": tmp_path / "set" / "train",
        "val_json": tmp_path / "set" / "val.json",
        "val_images": tmp_path / "set" / "val",
    }
    assert sorted(files(tmp_path)) == sorted(
        f"set/{name}"
        for name in (
            "parameters.json",
            "train.json",
            *(f"train/{k:06d}.png" for k in (1, 2, 3)),
            "val.json",
            *(f"val/{k:06d}.png" for k in (1, 2)),
        )
    )
    content = json.loads(paths["train_json"].read_text())
    assert [c["name"] for c in content["categories"]] == ["circle", "square", "triangle", "star"]
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4]
    assert [a["id"] for a in content["annotations"]] == list(
        range(1, len(content["annotations"]) + 1)
    )
    for k, image in enumerate(content["images"]):
        file_name = f"{k + 1:06d}.png"
        assert image == {"id": k + 1, "file_name": file_name, "width": 48, "height": 48}
        pixels, found = shapes.draw_image(np.random.default_rng([7, 0, k]), 48, 3)
        written = np.asarray(Image.open(paths["train_images"] / file_name))
        np.testing.assert_array_equal(written, pixels)
        annotations = [a for a in content["annotations"] if a["image_id"] == k + 1]
        assert len(annotations) == len(found)
        for annotation, (category, mask) in zip(annotations, found, strict=True):
            assert annotation["category_id"] == category + 1
            assert annotation["iscrowd"] == 0
            assert annotation["area"] == mask.sum()
            rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 48, 48))
            np.testing.assert_array_equal(coco_mask.decode(rle), mask)
            assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
            # Whole numbers would be rounded down by in-place resizing.
            assert {type(v) for v in [*annotation["bbox"], *annotation["segmentation"][0]]} == {
                float
            }


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        shapes.make_shapes_dataset(tmp_path / name, **{**SMALL, "seed": seed})
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_splits_differ_and_more_images_keep_the_first(tmp_path):
    shapes.make_shapes_dataset(tmp_path / "a", **SMALL)
    shapes.make_shapes_dataset(tmp_path / "b", **{**SMALL, "train": 4})
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert a["train/000001.png"] != a["val/000001.png"]
    assert all(a[name] == b[name] for name in a if name.endswith(".png"))


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("size", 31, 32),
        ("train", 0, 1),
        ("val", -1, 1),
        ("max_shapes", 0, 1),
        ("seed", -1, 0),
        ("size", 64.0, 32),
        ("train", True, 1),
    ],
)
def test_bad_values_are_named(tmp_path, name, value, least):
    message = f"{name} must be a whole number of at least {least}, got {value!r}"
    with pytest.raises(ValueError, match=message):
        shapes.make_shapes_dataset(tmp_path / "set", **{**SMALL, name: value})
    assert files(tmp_path) == {}


def test_a_set_already_there_is_left_alone(tmp_path):
    first = shapes.make_shapes_dataset(tmp_path / "set", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")}
    assert shapes.make_shapes_dataset(tmp_path / "set", **SMALL) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")} == before


def test_another_set_is_not_overwritten(tmp_path):
    shapes.make_shapes_dataset(tmp_path / "set", **SMALL)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="made with val 2 instead of 5, seed 7 instead of 8"):
        shapes.make_shapes_dataset(tmp_path / "set", **{**SMALL, "val": 5, "seed": 8})
    assert files(tmp_path) == before


@pytest.mark.parametrize("marker", [None, "cut off {", "[]"])
def test_a_foreign_folder_is_not_overwritten(tmp_path, marker):
    (tmp_path / "thesis.txt").write_text("precious")
    if marker:
        (tmp_path / "parameters.json").write_text(marker)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="is not empty and no set made by this tool"):
        shapes.make_shapes_dataset(tmp_path, **SMALL)
    assert files(tmp_path) == before


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "set").write_text("precious")
    with pytest.raises(ValueError, match="set is a file"):
        shapes.make_shapes_dataset(tmp_path / "set", **SMALL)


def test_a_set_with_images_removed_is_reported(tmp_path):
    shapes.make_shapes_dataset(tmp_path / "set", **SMALL)
    (tmp_path / "set/train/000002.png").unlink()
    with pytest.raises(ValueError, match=r"2 of 3 images in train/, train\.json present"):
        shapes.make_shapes_dataset(tmp_path / "set", **SMALL)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_annotation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shapes.make_shapes_dataset(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_used_and_parents_are_made(tmp_path):
    shapes.make_shapes_dataset(tmp_path, **SMALL)
    assert (tmp_path / "val.json").is_file()
    shapes.make_shapes_dataset(tmp_path.parent / f"{tmp_path.name}-2" / "new" / "set", **SMALL)


# --- command line ---


def test_command_line(tmp_path):
    def run(*more):
        options = ["--train=3", "--val=2", "--size=48", "--max-shapes=3", "--seed=7"]
        command = [sys.executable, SCRIPT, out, *options, *more]
        return subprocess.run(command, capture_output=True, text=True)

    out = tmp_path / "set"
    first = run()
    assert first.returncode == 0, first.stderr
    assert f"train_json    {out}/train.json" in first.stdout
    assert "train: 3 of 3 images" in first.stderr
    shapes.make_shapes_dataset(tmp_path / "same", **SMALL)
    assert files(out) == files(tmp_path / "same")
    second = run("--json")
    assert second.returncode == 0
    assert "already there, nothing done" in second.stderr
    assert json.loads(second.stdout)["val_images"] == f"{out}/val"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "16"], "size must be a whole number of at least 32, got 16"),
        (["--train", "0"], "train must be a whole number of at least 1, got 0"),
        (["--val", "many"], "invalid int value: 'many'"),
        (["--tra", "5"], "unrecognized arguments: --tra"),
    ],
)
def test_command_line_refuses(tmp_path, capsys, options, message):
    try:
        status = shapes.main([str(tmp_path / "set"), *options])
    except SystemExit as stop:  # the parser's
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
