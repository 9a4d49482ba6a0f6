import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from evonorm_plugins.integrations import pictures
from evonorm_plugins.integrations.detectron2.pictures import _found, _true_item, draw_predictions
from evonorm_plugins.integrations.pictures import Item, _colour, draw_pairs

NAMES = ["circle", "square"]
SIDE, GAP = 384, 8  # as drawn: pixels of an image's longer side, half the space around a pair
TOP = 24 + 2 * GAP  # height of the title row


def gray(height=32, width=32):
    return np.full((height, width, 3), 100, np.uint8)


def truth(*annotations):
    return {"annotations": list(annotations)}


def true_square(**changes):
    """Columns 8 to 23, rows 16 to 23 of the image."""
    return {
        "category_id": 1,
        "bbox": [8, 16, 16, 8],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [[8, 16, 24, 16, 24, 24, 8, 24]],
        **changes,
    }


def found(size=(32, 32), boxes=(), classes=(), scores=(), masks=None):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.long)
    instances.scores = torch.tensor(scores, dtype=torch.float)
    if masks is not None:
        instances.pred_masks = masks
    return instances


def draw(path, image, true, predicted, **options):
    draw_predictions([image], [true], [predicted], NAMES, path, **options)
    return np.asarray(Image.open(path)).astype(int)


def panels(sheet, height=SIDE):
    """The ground truth and the prediction of the first image, as drawn."""
    left, right = 2 * GAP, 2 * GAP + SIDE + GAP // 2
    rows = sheet[TOP : TOP + height]
    return rows[:, left : left + SIDE], rows[:, right : right + SIDE]


def shows(colour, panel):
    return (abs(panel - np.array(colour)).max(-1) < 30).any()


def test_both_sides_are_drawn_where_they_belong(tmp_path):
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 4:12, 4:12] = True
    predicted = found(boxes=[[4, 4, 12, 12]], classes=[0], scores=[0.9], masks=mask)
    sheet = draw(tmp_path / "p.png", gray(), truth(true_square()), predicted)
    assert sheet.shape == (TOP + SIDE + 2 * GAP, 2 * SIDE + GAP // 2 + 4 * GAP, 3)
    left, right = panels(sheet)
    circle, square = np.array(_colour(0)), np.array(_colour(1))
    tint = lambda colour: 100 + (colour - 100) * 110 / 255  # noqa: E731
    # Centres of the masks, 12 times enlarged; half transparent.
    np.testing.assert_allclose(left[20 * 12, 16 * 12], tint(square), atol=1)
    np.testing.assert_allclose(right[8 * 12, 8 * 12], tint(circle), atol=1)
    # And nothing elsewhere.
    np.testing.assert_array_equal(left[8 * 12, 4 * 12], [100] * 3)
    np.testing.assert_array_equal(right[20 * 12, 16 * 12], [100] * 3)
    # Outlines are opaque: the left border of each box.
    np.testing.assert_array_equal(left[20 * 12, 8 * 12], square)
    np.testing.assert_array_equal(right[8 * 12, 4 * 12], circle)
    assert not shows(circle, left)
    assert not shows(square, right)


def test_predictions_below_the_threshold_are_not_drawn(tmp_path):
    predicted = found(boxes=[[4, 4, 12, 12], [15, 15, 30, 30]], classes=[0, 1], scores=[0.6, 0.4])
    _, right = panels(draw(tmp_path / "p.png", gray(), truth(), predicted))
    assert shows(_colour(0), right)
    assert not shows(_colour(1), right)
    _, right = panels(draw(tmp_path / "p.png", gray(), truth(), predicted, score_threshold=0.3))
    assert shows(_colour(1), right)


def test_no_objects_and_no_predictions_with_an_empty_mask_tensor(tmp_path):
    empty = found(masks=torch.zeros(0, 32, 32, dtype=torch.bool))
    left, right = panels(draw(tmp_path / "p.png", gray(), truth(), empty))
    for panel in (left, right):  # a note at the top left, the image untouched below
        assert shows((230, 230, 230), panel[:40])
        assert (panel[40:] == 100).all()


def test_every_form_of_mask_is_decoded_alike():
    from pycocotools import mask as coco_mask

    expected = np.zeros((32, 32), bool)
    expected[16:24, 8:24] = True
    compressed = coco_mask.encode(np.asfortranarray(expected, dtype=np.uint8))
    runs = np.flatnonzero(np.diff(expected.T.ravel(), prepend=False, append=False))
    counts = np.diff([0, *runs, 32 * 32]).tolist()
    for form in (
        true_square()["segmentation"],
        compressed,
        {**compressed, "counts": compressed["counts"].decode()},
        {"size": [32, 32], "counts": counts},
    ):
        index, label, box, mask = _true_item(true_square(segmentation=form), (32, 32), NAMES)
        assert (index, label, box) == (1, "square", [8, 16, 24, 24])
        np.testing.assert_array_equal(mask, expected)
    assert _true_item(true_square(segmentation=[], iscrowd=1), (32, 32), NAMES)[1:] == (
        "square (crowd)",
        [8, 16, 24, 24],
        None,
    )


def test_keypoints_are_discs_and_holes_in_masks(tmp_path):
    points = [8, 8, 2, 16, 20, 1, 24, 8, 0]  # the last is not in the image
    true = truth(true_square(keypoints=points))
    predicted = found(boxes=[[4, 4, 12, 12]], classes=[0], scores=[0.9])
    predicted.pred_keypoints = torch.tensor([[[20.0, 6, 1], [6, 20, 1], [6, 6, 1]]])
    left, right = panels(draw(tmp_path / "p.png", gray(), true, predicted))
    circle, square = (100 + (np.array(_colour(k)) - 100) * 110 / 255 for k in (0, 1))
    np.testing.assert_allclose(left[8 * 12, 8 * 12], square, atol=1)
    np.testing.assert_array_equal(left[20 * 12, 16 * 12], [100] * 3)
    np.testing.assert_array_equal(left[8 * 12, 24 * 12], [100] * 3)
    np.testing.assert_allclose(right[6 * 12, 20 * 12], circle, atol=1)


def test_classes_of_pixels_and_segments():
    meta = Metadata(
        name="x", thing_classes=["box"], stuff_classes=["things", "ground", "sky"], ignore_label=255
    )
    labels = torch.full((8, 8), 1)
    labels[:2], labels[4:] = 2, 0
    logits = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1).float()
    items = _found({"sem_seg": logits}, meta)
    assert [item[:3] for item in items] == [(2, "ground", None), (3, "sky", None)]
    np.testing.assert_array_equal(items[0].mask, labels.numpy() == 1)
    segments = [
        {"id": 1, "isthing": True, "score": 0.75, "category_id": 0, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 2, "area": 16},
    ]
    items = _found({"sem_seg": logits, "panoptic_seg": (labels, segments)}, meta)
    assert [item[:3] for item in items] == [(3, "sky", None), (0, "box 0.75", None)]
    np.testing.assert_array_equal(items[1].mask, labels.numpy() == 1)


def test_the_surest_proposals_are_numbered_and_drawn_last():
    proposals = Instances((8, 8))
    boxes = torch.arange(12.0)[:, None] + torch.tensor([0, 0, 4, 4])
    proposals.proposal_boxes = Boxes(boxes)
    items = _found({"proposals": proposals}, Metadata(name="x"))
    assert [item.label for item in items] == [str(k) for k in range(10, 0, -1)]
    assert items[-1].box == [0, 0, 4, 4]


def test_an_item_without_a_box_has_its_name_in_its_mask(tmp_path):
    mask = np.zeros((32, 32), bool)
    mask[20:28, 4:30] = True
    path, item = tmp_path / "p.png", Item(0, "sky", None, mask)
    draw_pairs([gray()], [[item]], [[]], path, score_threshold=None, no_truth="no annotations")
    left, right = panels(np.asarray(Image.open(path)).astype(int))
    assert shows(_colour(0), left[20 * 12 :])
    assert (left[: 18 * 12] == 100).all()
    assert not shows(_colour(0), right)


def test_many_sizes_in_columns(tmp_path):
    sizes = [(32, 32), (20, 40), (300, 100), (1000, 1400), (1, 50)]
    path = tmp_path / "new" / "p.png"
    images, predictions = [gray(*s) for s in sizes], [found(s) for s in sizes]
    draw_predictions(images, [truth()] * 5, predictions, NAMES, path, columns=3)
    # Rows as high as their highest image: 384 (a square), then 384 * 1000 / 1400.
    pair = 2 * SIDE + GAP // 2 + 2 * GAP
    assert Image.open(path).size == (3 * pair + 2 * GAP, TOP + 384 + 274 + 4 * GAP)
    assert [p.name for p in path.parent.iterdir()] == ["p.png"]


def test_boxes_may_reach_beyond_the_image(tmp_path):
    predicted = found(boxes=[[-50, -50, 90, 90], [40, 40, 60, 60]], classes=[0, 1], scores=[1, 1])
    assert shows(_colour(0), panels(draw(tmp_path / "p.png", gray(), truth(), predicted))[1])


def test_colours_of_neighbouring_classes_differ():
    colours = np.array([_colour(k) for k in range(10)], int)
    distances = np.abs(colours[:, None] - colours).sum(-1)
    assert distances[~np.eye(10, dtype=bool)].min() > 60
    assert distances[:4, :4][~np.eye(4, dtype=bool)].min() > 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "p.jpg"}, r"path must end in \.png, got '.*p\.jpg'"),
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"images": []}, "0 images, 1 ground truths, 1 predictions"),
        ({"predictions": [found(), found()]}, "1 images, 1 ground truths, 2 predictions"),
        ({"images": [gray() / 255]}, r"image 0 must be uint8 \(H, W, 3\), got float64"),
        ({"images": [gray()[..., 0]]}, r"image 0 must be uint8 .* got uint8 \(32, 32\)"),
        (
            {"predictions": [found((64, 64))]},
            r"predictions 0 are for \(H, W\) \(64, 64\), image 0 is \(32, 32\)",
        ),
        ({"class_names": ["circle"]}, "class 1 has no name; class_names has 1"),
        (
            {
                "predictions": [
                    found(
                        boxes=[[0, 0, 9, 9]], classes=[0], scores=[1], masks=torch.ones(1, 28, 28)
                    )
                ]
            },
            r"pred_masks must be \(N, H, W\) in the image's size \(32, 32\), got \(1, 28, 28\)",
        ),
        (
            {
                "ground_truths": [
                    truth(true_square(segmentation={"size": [8, 8], "counts": [32, 32]}))
                ]
            },
            r"a ground truth mask is for \(H, W\) \(8, 8\), its image is \(32, 32\)",
        ),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, change, message):
    arguments = {
        "images": [gray()],
        "ground_truths": [truth(true_square())],
        "predictions": [found()],
        "class_names": NAMES,
        "path": "p.png",
        **change,
    }
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        draw_predictions(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_older_picture_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    draw(path, gray(), truth(), found())
    before = path.read_bytes()

    def fail(self, file, _):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_predictions([gray()], [truth()], [found()], NAMES, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("objects", "labels"), [(8, 8), (9, 0)])
def test_many_objects_of_one_class_have_no_labels(tmp_path, monkeypatch, objects, labels):
    drawn = []
    monkeypatch.setattr(pictures, "_label", lambda draw, size, text, *_: drawn.append(text))
    items = [Item(0, "cell", [k, k, k + 4, k + 4]) for k in range(objects)]
    image = np.zeros((16, 16, 3), np.uint8)
    draw_pairs([image], [items], [items[:1]], tmp_path / "pairs.png")
    assert len(drawn) == labels + 1
