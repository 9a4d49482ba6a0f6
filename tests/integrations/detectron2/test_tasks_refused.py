"""What a task lacks is said in a line, before anything is trained or written."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog
from PIL import Image

from evonorm_plugins.integrations.detectron2 import tasks
from evonorm_plugins.integrations.detectron2.config import load_config
from tests.integrations.detectron2 import small_sets
from tests.integrations.detectron2.test_tasks import (
    CITYSCAPES,
    KEYPOINTS,
    LVIS,
    MASKS,
    PANOPTIC,
    PRECOMPUTED,
    PROPOSALS,
    SEMANTIC,
    SIGMAS,
    THREE,
    VOC,
    on,
    run,
)

TWO = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)


@pytest.fixture
def refused(tmp_path, capsys):
    """``refused(config, *options)``: the one line that is said, with exit status 2."""

    def check(config, *options, flags=()):
        out = tmp_path / "out"
        assert run(config, *options, "OUTPUT_DIR", out, flags=flags) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert not out.exists()
        return said.splitlines()[-1]

    return check


def flags_of(paths, *splits):
    path, images = map(str, paths)
    return [x for s in splits for x in (f"--{s}-json", path, f"--{s}-images", images)]


@pytest.mark.parametrize(
    ("package", "register", "config", "command"),
    [
        ("lvis", small_sets.register_lvis, LVIS, "pip install lvis"),
        (
            *("panopticapi", small_sets.register_panoptic, PANOPTIC),
            "pip install git+https://github.com/cocodataset/panopticapi",
        ),
        (
            *("cityscapesscripts", lambda f: small_sets.register_cityscapes(f, "instance")),
            *(CITYSCAPES, "pip install cityscapesscripts"),
        ),
    ],
)
def test_packages(refused, tmp_path, monkeypatch, package, register, config, command):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    name = register(tmp_path / "set")
    said = refused(config, *on(name), *TWO)
    assert f"the dataset {name} needs the package {package} (" in said
    assert command in said


@pytest.mark.parametrize(
    ("register", "config", "gone", "said"),
    [
        (small_sets.register_coco, MASKS, "coco.json", "no annotations at"),
        (small_sets.register_coco, MASKS, "images", "no images at"),
        (small_sets.register_lvis, LVIS, "lvis.json", "no annotations at"),
        (small_sets.register_panoptic, PANOPTIC, "panoptic.json", "no panoptic annotations at"),
        (small_sets.register_panoptic, PANOPTIC, "stuff", "no label images at"),
        (small_sets.register_semantic, SEMANTIC, "labels", "no label images at"),
        (small_sets.register_voc, VOC, "ImageSets/Main/train.txt", "no list of images at"),
        (small_sets.register_voc, VOC, "Annotations", "no annotations at"),
        (
            *(lambda f: small_sets.register_cityscapes(f, "sem_seg"), SEMANTIC),
            *("gtFine", "no annotations at"),
        ),
    ],
)
def test_files_that_are_not_there(refused, tmp_path, register, config, gone, said):
    name = register(tmp_path / "set")
    path = tmp_path / "set" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = refused(config, *on(name))
    assert f"the dataset {name} has {said} {path}; set DETECTRON2_DATASETS" in message


def test_a_set_that_cannot_be_read(refused, tmp_path):
    name = small_sets.register_voc(tmp_path / "set")
    (tmp_path / "set/Annotations/000002.xml").write_text("<annotation>")
    assert f"the dataset {name} cannot be used: ParseError: " in refused(VOC, *on(name))
    (tmp_path / "set/Annotations/000002.xml").unlink()
    assert "000002.xml" in refused(VOC, *on(name))


def test_images_that_are_not_there(refused, tmp_path):
    name = small_sets.register_coco(tmp_path / "set")
    gone = tmp_path / "set/images/000002.jpg"
    gone.unlink()
    said = f"1 of 3 files of the dataset {name} are not there: {gone}"
    assert said in refused(MASKS, *on(name))


@pytest.mark.parametrize("config", [SEMANTIC, PANOPTIC])
def test_label_images_are_not_in_a_coco_file(refused, tmp_path, config):
    paths = small_sets.write_coco(tmp_path / "set")
    said = refused(config, *TWO, flags=flags_of(paths, "train", "val"))
    assert "learns from label images, of which DATASETS.TRAIN evonorm_train has none" in said


def test_an_evaluator_for_what_the_model_does_not_give(refused, tmp_path):
    semantic = small_sets.register_semantic(tmp_path / "semantic")
    objects = small_sets.register_coco(tmp_path / "coco")
    said = refused(SEMANTIC, *on(semantic, "train"), *on(objects, "test"), *TWO)
    assert f"{objects} evaluates objects with boxes" in said
    assert "SemanticSegmentor gives a class for every pixel" in said
    said = refused(MASKS, *on(objects, "train"), *on(semantic, "test"))
    assert f"{semantic} evaluates a class for every pixel" in said
    said = refused(MASKS, *on(semantic))
    assert f"learns from objects with boxes, of which DATASETS.TRAIN {semantic} has none" in said


def test_no_config_of_the_model_zoo_is_refused(monkeypatch):
    """Wherever its sets and their packages are there."""
    monkeypatch.setattr(tasks, "_check_packages", lambda *_, **__: None)
    monkeypatch.setattr(tasks, "_check_files", lambda *_: None)
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [])
    zoo = Path(model_zoo.get_config_file(MASKS)).parents[1]
    checked = 0
    for path in sorted(zoo.rglob("*.yaml")):
        cfg, _ = load_config(path)
        if cfg.DATASETS.TRAIN:
            # Those for inference name no training set of their own.
            tasks.check_tasks(cfg, training="inference" not in path.name)
            checked += 1
    assert checked > 60


def test_cityscapes_on_several_machines(refused, tmp_path):
    name = small_sets.register_cityscapes(tmp_path / "set", "sem_seg")
    with pytest.MonkeyPatch.context() as patched:
        # Whether its package is installed does not matter here.
        patched.setattr(tasks, "_check_packages", lambda *_, **__: None)
        said = refused(SEMANTIC, *on(name), *TWO, flags=("--num-machines", "2"))
    assert f"--num-machines 2: Detectron2 evaluates Cityscapes ({name}) on one machine" in said


def test_masks_of_pascal_voc(refused, tmp_path):
    name = small_sets.register_voc(tmp_path / "set")
    assert "MODEL.MASK_ON must be False: " in refused(VOC, *on(name), "MODEL.MASK_ON", True)


def test_classes(refused, tmp_path):
    name = small_sets.register_semantic(tmp_path / "semantic")
    said = refused(SEMANTIC, *on(name), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54)
    assert f"{name} has 2 categories, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54; set it to 2" in said
    paths = small_sets.write_coco(tmp_path / "coco")
    flags = flags_of(paths, "train", "val")
    said = refused(MASKS, "MODEL.ROI_HEADS.NUM_CLASSES", 80, flags=flags)
    assert "evonorm_val has 1 categories, MODEL.ROI_HEADS.NUM_CLASSES is 80; set it to 1" in said


def test_categories_of_training_and_evaluation(refused, tmp_path):
    (path, images), other = small_sets.write_coco(tmp_path / "set"), tmp_path / "other.json"
    other.write_text(path.read_text().replace('"box"', '"ball"'))
    flags = [*flags_of((path, images), "train"), *flags_of((other, images), "val")]
    said = refused(MASKS, flags=flags)
    assert f"the categories of {path} (box) and {other} (ball) must be the same" in said


def test_an_unknown_kind_of_set(refused, tmp_path):
    from detectron2.data import MetadataCatalog

    name = small_sets.register_coco(tmp_path / "set")
    del MetadataCatalog.get(name).evaluator_type
    MetadataCatalog.get(name).evaluator_type = "densepose_coco"
    said = refused(MASKS, *on(name))
    assert f"{name} has the evaluator_type 'densepose_coco'; there are evaluators for coco," in said


def without_names(content):
    del content["categories"][0]["keypoints"]


def without_keypoints(content):
    del content["annotations"][1]["keypoints"]


def two_keypoints(content):
    content["annotations"][1]["keypoints"] = [1, 1, 2, 3, 3, 2]


def not_counted(content):
    content["annotations"][1]["num_keypoints"] = 0


def none_visible(content):
    for entry in content["annotations"]:
        entry |= {"keypoints": [0] * 9, "num_keypoints": 0}


def another_list(content):
    content["categories"].append({"id": 8, "name": "dog", "keypoints": ["tail"]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_names, "no category names its 'keypoints'"),
        (without_keypoints, "1 annotations have no 'keypoints' (x, y, visibility (0, 1 or 2) of"),
        (two_keypoints, "each of the 3 keypoints) with the number of those that are labelled"),
        (not_counted, "'num_keypoints': ids 2"),
        (none_visible, "no keypoint of any annotation is visible"),
        (another_list, "the categories 'box' and 'dog' have different keypoints"),
    ],
)
def test_keypoints_of_a_coco_file(refused, tmp_path, change, said):
    path, images = small_sets.write_coco(tmp_path / "set", keypoints=True)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    flags = ("--allow-empty-categories", *flags_of((path, images), "train", "val"))
    message = refused(KEYPOINTS, *THREE, flags=flags)
    assert said in message
    assert str(path) in message


def test_numbers_of_keypoints(refused, tmp_path):
    paths = small_sets.write_coco(tmp_path / "set", keypoints=True)
    flags = flags_of(paths, "train", "val")
    said = refused(KEYPOINTS, *SIGMAS, flags=flags)
    assert "3 keypoints, MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is 17; set it to 3" in said
    said = refused(KEYPOINTS, *THREE[:2], flags=flags)
    assert "TEST.KEYPOINT_OKS_SIGMAS must be 3 numbers, one for each keypoint, got 0" in said
    name = small_sets.register_coco(tmp_path / "other")
    said = refused(KEYPOINTS, *THREE, *on(name))
    assert f"MODEL.KEYPOINT_ON is True, and the dataset {name} names no keypoints" in said


def proposals(path, **changes):
    ids = [1, 2, 3]
    content = {
        "ids": ids,
        "boxes": [np.array([[4.0, 4, 40, 40]], "float32") for _ in ids],
        "objectness_logits": [np.array([1.0], "float32") for _ in ids],
        **changes,
    }
    path.write_bytes(pickle.dumps(content))
    return path


def files_of(path):
    return [x for s in ("TRAIN", "TEST") for x in (f"DATASETS.PROPOSAL_FILES_{s}", f"('{path}',)")]


def test_proposals(refused, tmp_path):
    name, path = small_sets.register_coco(tmp_path / "set"), tmp_path / "p.pkl"
    said = refused(PRECOMPUTED, *on(name), "DATASETS.PROPOSAL_FILES_TRAIN", "()")
    assert "DATASETS.PROPOSAL_FILES_TRAIN must name a file for each of the 1 of" in said
    said = refused(PRECOMPUTED, *on(name), *files_of(path))
    assert f"there is no file of proposals {path}" in said
    for changes, expected in (
        ({"ids": [1, 2]}, f"{path} has 2 ids, 3 lists of boxes, 3 of logits"),
        ({"ids": [1, 2, 9]}, f"{path} has no proposals for 1 of 3 images of the dataset {name}"),
        ({"boxes": [np.zeros((1, 5))] * 3}, "the boxes of image 1 must be of the shape (number of"),
        ({"boxes": None}, f"{path} holds no proposals"),
    ):
        proposals(path, **changes)
        assert expected in refused(PRECOMPUTED, *on(name), *files_of(path))
    said = refused(PRECOMPUTED, *on(name), "MODEL.LOAD_PROPOSALS", False)
    assert "PrecomputedProposals needs MODEL.LOAD_PROPOSALS True" in said


def test_proposals_that_hold_code(refused, tmp_path):
    name, witness = small_sets.register_coco(tmp_path / "set"), tmp_path / "ran"
    path = tmp_path / "p.pkl"
    path.write_bytes(f"cos\nmkdir\n(V{witness}\ntR.".encode())
    said = refused(PRECOMPUTED, *on(name), *files_of(path))
    assert "could run the code of whoever wrote it: if you trust the file, give --trust-w" in said
    assert not witness.exists()


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (KEYPOINTS, (), "cannot augment images at test time with MODEL.KEYPOINT_ON"),
        (PROPOSALS, (), "not for MODEL.META_ARCHITECTURE ProposalNetwork"),
    ],
)
def test_augmentation_at_test_time(refused, tmp_path, config, options, said):
    metadata = {"keypoint_names": list("abc"), "keypoint_flip_map": []}
    name = small_sets.register_coco(tmp_path / "set", metadata=metadata, keypoints=True)
    message = refused(config, *THREE, *on(name), "TEST.AUG.ENABLED", True, *options)
    assert said in message


def test_expected_results_that_cannot_be(refused, tmp_path):
    name = small_sets.register_coco(tmp_path / "set")
    key = "TEST.EXPECTED_RESULTS"
    said = refused(MASKS, *on(name), key, "[['bbox_TTA', 'AP', 1.0, 1.0]]")
    assert f"{key} names the task 'bbox_TTA'; those evaluated are bbox, segm" in said
    said = refused(MASKS, *on(name, "train"), "DATASETS.TEST", "()", key, "[['bbox', 'AP', 1, 1]]")
    assert f"{key} are those of one set, DATASETS.TEST has 0" in said


def test_nothing_to_learn_from(refused, tmp_path):
    name = small_sets.register_coco(tmp_path / "set")
    said = refused(MASKS, *on(name, "test"), "DATASETS.TRAIN", "()")
    assert "DATASETS.TRAIN is empty" in said


def test_wrong_labels_in_an_evaluation(tmp_path, capsys):
    name = small_sets.register_semantic(tmp_path / "train")
    other = small_sets.register_semantic(tmp_path / "test", "small_other")
    path = tmp_path / "test/labels/000002.png"
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(path)
    out = ("OUTPUT_DIR", tmp_path / "out")
    assert run(SEMANTIC, *on(name, "train"), *on(other, "test"), *TWO, *out) == 2
    assert f"error: {path} has the label 9; a label image is" in capsys.readouterr().err
    assert (tmp_path / "out/model_final.pth").exists()
