import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from evonorm_plugins.coco.train import check_coco
from evonorm_plugins.errors import BrokenImageError, DataError
from evonorm_plugins.integrations.detectron2.data import NamingMapper, register_coco
from tests.integrations.detectron2 import small_sets


@pytest.fixture
def root(tmp_path):
    """A folder with images, empty files, and ``set.json``."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    names = ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")
    for name in names:
        (tmp_path / "images" / name).touch()
    square = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]
    annotations = [
        {"id": k, "image_id": image, "category_id": category, "bbox": [1.0, 1.0, 4.0, 4.0]}
        | {"area": 16.0, "iscrowd": 0, "segmentation": square}
        for k, image, category in ((1, 4, 3), (2, 4, 3), (3, 5, 8))
    ]
    annotations.append(
        {**annotations[0], "id": 7, "image_id": 6, "category_id": 8, "iscrowd": 1}
        | {"segmentation": {"size": [10, 12], "counts": [60, 60]}}
    )
    content = {
        "images": [
            {"id": k, "file_name": name, "height": 10, "width": 12}
            for k, name in zip((4, 5, 6, 9), names, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path


def test_what_passes_can_be_loaded_by_detectron2(root):
    check_coco(root / "set.json", root / "images")
    dicts = load_coco_json(str(root / "set.json"), str(root / "images"), "evonorm_test_loaded")
    MetadataCatalog.remove("evonorm_test_loaded")
    assert [len(d["annotations"]) for d in dicts] == [2, 1, 1, 0]


@pytest.fixture
def name():
    name = "evonorm_test_set"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)


def test_register(root, name, monkeypatch):
    report = check_coco(root / "set.json", root / "images")
    monkeypatch.chdir(root)
    assert register_coco(name, "set.json", "images") == report
    # The same again, by another spelling of the paths and from elsewhere.
    monkeypatch.chdir("/")
    assert register_coco(name, str(root / "images/../set.json"), root / "images") == report
    dicts = DatasetCatalog.get(name)
    assert [d["file_name"] for d in dicts] == [
        str(root / "images" / n) for n in ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")
    ]
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_register_other_paths_under_the_same_name(root, name):
    register_coco(name, root / "set.json", root / "images")
    (root / "other.json").write_bytes((root / "set.json").read_bytes())
    with pytest.raises(DataError) as caught:
        register_coco(name, root / "other.json", root / "images")
    assert f"{name!r} is taken by {root}/set.json" in str(caught.value)
    assert f"so {root}/other.json" in str(caught.value)
    assert MetadataCatalog.get(name).json_file == str(root / "set.json")


def test_register_a_name_taken_by_another_kind_of_set(root, name):
    DatasetCatalog.register(name, lambda: [])
    with pytest.raises(DataError, match="is taken by a set that is no COCO file"):
        register_coco(name, root / "set.json", root / "images")


def test_a_bad_set_is_not_registered(root, name):
    with pytest.raises(DataError):
        register_coco(name, root / "none.json", root / "images")
    assert name not in DatasetCatalog.list()


def test_keypoints_have_the_names_of_the_file(tmp_path):
    path, images = small_sets.write_coco(tmp_path, keypoints=True)
    register_coco("evonorm_test_keypoints", path, images, keypoints=True)
    meta = MetadataCatalog.get("evonorm_test_keypoints")
    assert meta.keypoint_names == ["nose", "left_ear", "right_ear"]
    assert meta.keypoint_flip_map == [("left_ear", "right_ear")]


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (np.full((64, 64), 9), DataError, "{path} has the label 9; a label image is (H, W) with"),
        (np.zeros((60, 64)), DataError, "its label image {path} is (60, 64), the image (64, 64)"),
        (None, BrokenImageError, "{path} cannot be read as an image: "),
    ],
)
def test_label_images_that_are_wrong_are_named(tmp_path, labels, kind, said):
    record = DatasetCatalog.get(small_sets.register_semantic(tmp_path))[0]
    path = tmp_path / "labels/000001.png"
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "SemanticSegmentor", 2
    NamingMapper(cfg, True)(record)
    if labels is None:
        path.write_bytes(path.read_bytes()[:40])
    else:
        Image.fromarray(labels.astype(np.uint8)).save(path)
    with pytest.raises(kind) as caught:
        NamingMapper(cfg, True)(record)
    assert said.format(path=path) in str(caught.value)
