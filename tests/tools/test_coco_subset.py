"""tools/coco_subset.py: the images whose smallest object is largest."""

import json
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/coco_subset.py"))
CONTENT = {
    "info": {"year": 2017},
    "images": [{"id": k, "width": 100, "height": 100} for k in (1, 2, 3, 4, 5)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 90, 90], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 5, 5], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 50, 50], "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 7, "bbox": [0, 0, 60, 60], "iscrowd": 0},
        {"id": 5, "image_id": 4, "category_id": 7, "bbox": [0, 0, 99, 99], "iscrowd": 1},
    ],
}


def test_choice():
    subset = TOOL["coco_subset"](CONTENT, 2)
    # Image 1 has a tiny object, 4 a crowd, 5 nothing.
    assert [image["id"] for image in subset["images"]] == [2, 3]
    assert [a["id"] for a in subset["annotations"]] == [3, 4]
    assert subset["categories"] == [{"id": 7, "name": "cat"}]
    assert subset["info"] == {"year": 2017}


def test_command_line(tmp_path, capsys):
    source, target = tmp_path / "all.json", tmp_path / "few.json"
    source.write_text(json.dumps(CONTENT))
    assert TOOL["main"]([str(source), str(target), "--images", "3"]) == 0
    assert "3 images, 4 objects" in capsys.readouterr().out
    assert [image["id"] for image in json.loads(target.read_text())["images"]] == [1, 2, 3]


@pytest.mark.parametrize("images", [0, 4])
def test_too_many_or_none(tmp_path, capsys, images):
    source = tmp_path / "all.json"
    source.write_text(json.dumps(CONTENT))
    target = tmp_path / "few.json"
    assert TOOL["main"]([str(source), str(target), "--images", str(images)]) == 2
    assert f"--images {images}: there are 3 to choose from" in capsys.readouterr().err
    assert not target.exists()


def test_missing_file(tmp_path, capsys):
    assert TOOL["main"]([str(tmp_path / "gone.json"), str(tmp_path / "few.json")]) == 2
    assert "gone.json" in capsys.readouterr().err


def test_the_source_is_never_written_over(tmp_path, capsys):
    source, other = tmp_path / "all.json", tmp_path / "other.json"
    for path in (source, other):
        path.write_text(json.dumps(CONTENT))
    for target in (source, other):
        assert TOOL["main"]([str(source), str(target)]) == 2
        assert capsys.readouterr().err.startswith(f"error: target {target} is ")
        assert json.loads(target.read_text()) == CONTENT
    assert TOOL["main"]([str(source), str(other), "--images", "2", "--force"]) == 0


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_a_file_that_lacks_something(tmp_path, capsys, key):
    source = tmp_path / "all.json"
    source.write_text(json.dumps({**CONTENT, key: [{"id": 1}]}))
    assert TOOL["main"]([str(source), str(tmp_path / "few.json")]) == 2
    assert "is missing in the" in capsys.readouterr().err
