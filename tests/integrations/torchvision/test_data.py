"""Images and targets: hand-written sets, hand-written answers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_plugins.errors import BrokenImageError, DataError
from evonorm_plugins.integrations.torchvision.data import (
    CocoSet,
    TrainingImages,
    batches,
    mirrored,
)

SQUARE = [[2, 1, 5, 1, 5, 3, 2, 3]]  # columns 2 to 4, rows 1 and 2


def annotation(number, image_id, category_id, **changes):
    common = {"bbox": [2, 1, 3, 2], "area": 6, "iscrowd": 0, "segmentation": SQUARE}
    return {"id": number, "image_id": image_id, "category_id": category_id, **common, **changes}


@pytest.fixture
def make(tmp_path):
    """A set of four images, 8 high and 10 wide; the categories have the ids 7 and 3."""
    content = {
        # Not in order of id.
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": 8, "width": 10} for k in (9, 4, 5, 6)
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            annotation(1, 4, 7),
            annotation(2, 4, 3, bbox=[0, 0, 4, 8]),
            annotation(3, 4, 3, iscrowd=1, segmentation={"size": [8, 10], "counts": [40, 40]}),
            annotation(4, 5, 3, bbox=[1, 1, 0, 4]),
            annotation(5, 6, 3),
            annotation(6, 9, 3),
        ],
    }
    for k in (4, 5, 6, 9):
        Image.fromarray(np.full((8, 10, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "set.json").write_text(json.dumps(content))
    return lambda **options: CocoSet(tmp_path / "set.json", tmp_path, **{"masks": True, **options})


def test_targets(make):
    coco = make()
    assert [image["id"] for image in coco.images] == [4, 5, 6, 9]
    assert coco.categories == ["cat", "dog"]
    assert coco.category_ids == [3, 7]
    target = coco.target(0)
    assert target["boxes"].tolist() == [[2, 1, 5, 3], [0, 0, 4, 8]]
    assert target["labels"].tolist() == [2, 1]  # 0 is the background
    expected = torch.zeros(8, 10, dtype=torch.uint8)
    expected[1:3, 2:5] = 1
    assert torch.equal(target["masks"], expected.expand(2, -1, -1))


def test_an_image_without_objects_to_learn_has_empty_targets(make):
    target = make().target(1)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 8, 10)


def test_boxes_alone(make):
    assert set(make(masks=False).target(0)) == {"boxes", "labels"}


def test_mirrored(make):
    image = torch.arange(10.0).expand(3, 8, 10)
    flipped, target = mirrored(image, make().target(0))
    assert flipped[0, 0].tolist() == list(range(9, -1, -1))
    assert target["boxes"].tolist() == [[5, 1, 8, 3], [6, 0, 10, 8]]
    assert target["masks"][0].nonzero().tolist() == [[y, x] for y in (1, 2) for x in (5, 6, 7)]


def ids(images, positions):
    return [images[k][2] for k in positions]


def test_every_image_with_objects_once_each_time_around(make):
    images = TrainingImages(make(), seed=0, flip=True)
    sequence = ids(images, range(30))
    assert [set(sequence[k : k + 3]) for k in range(0, 30, 3)] == [{4, 6, 9}] * 10
    assert len({tuple(sequence[k : k + 3]) for k in range(0, 30, 3)}) > 1
    assert ids(TrainingImages(make(), seed=1, flip=True), range(30)) != sequence
    # The same wherever one begins.
    assert ids(TrainingImages(make(), seed=0, flip=True), range(17, 30)) == sequence[17:]


def test_half_of_the_images_are_mirrored(make):
    plain = TrainingImages(make(), seed=0, flip=False)
    flipped = TrainingImages(make(), seed=0, flip=True)
    same = [torch.equal(plain[k][1]["boxes"], flipped[k][1]["boxes"]) for k in range(100)]
    assert 30 < sum(same) < 70


def test_images_are_what_was_written(make):
    image, _, number = TrainingImages(make(), seed=0, flip=False)[0]
    assert image.shape == (3, 8, 10)
    assert torch.equal(image, torch.full((3, 8, 10), number / 255))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(make, tmp_path, workers):
    (tmp_path / "6.png").write_bytes(b"no image")
    images = TrainingImages(make(), seed=0, flip=False)
    with pytest.raises(BrokenImageError) as caught:
        list(batches(images, range(3), 2, workers))
    assert str(caught.value).startswith(f"{tmp_path}/6.png (8 bytes) cannot be read as an image")
    assert "Traceback" not in str(caught.value)


def test_an_image_of_another_size_is_named(make, tmp_path):
    Image.new("RGB", (10, 9)).save(tmp_path / "6.png")
    with pytest.raises(DataError, match=r"6\.png is 9 x 10 \(height x width\) .* says 8 x 10"):
        list(batches(TrainingImages(make(), seed=0, flip=False), range(3), 3, 0))


def test_a_set_that_cannot_be_used_is_refused(make, tmp_path):
    (tmp_path / "9.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images of .* are not in"):
        make()
