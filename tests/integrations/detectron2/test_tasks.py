"""The training script on small sets of every task that Detectron2 evaluates."""

import json

import pytest
from detectron2 import model_zoo

from evonorm_plugins.integrations.detectron2 import train
from tests.integrations.detectron2 import small_sets

SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.NORM", "EvoNormS0", "MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(32,)"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.ROI_HEADS.NUM_CLASSES", "1"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "40", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "10", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"),
    *("SOLVER.BASE_LR", "0.001", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
)
QUICK = "quick_schedules/{}_instant_test.yaml"
MASKS, SEMANTIC, PANOPTIC, PROPOSALS, PRECOMPUTED, KEYPOINTS = (
    QUICK.format(name)
    for name in (
        *("mask_rcnn_R_50_FPN", "semantic_R_50_FPN", "panoptic_fpn_R_50", "rpn_R_50_FPN"),
        *("fast_rcnn_R_50_FPN", "keypoint_rcnn_R_50_FPN"),
    )
)
VOC = "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml"
LVIS = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
CITYSCAPES = "Cityscapes/mask_rcnn_R_50_FPN.yaml"


def run(config, *options, flags=()):
    path = model_zoo.get_config_file(config)
    return train.main(["--config-file", path, *flags, *SMALL, *map(str, options)])


def on(name, split="both"):
    """Options that name a set for training, evaluation or both."""
    keys = {"both": ("TRAIN", "TEST"), "train": ("TRAIN",), "test": ("TEST",)}[split]
    return [x for key in keys for x in (f"DATASETS.{key}", f"('{name}',)")]


def results_of(folder):
    assert (folder / "predictions.png").read_bytes()[:4] == b"\x89PNG"
    return json.loads((folder / "results.json").read_text())


def test_semantic(tmp_path):
    name = small_sets.register_semantic(tmp_path / "set")
    out = ("OUTPUT_DIR", tmp_path / "out", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    assert run(SEMANTIC, *on(name), *out) == 0
    record = results_of(tmp_path / "out")
    assert record["ap_percent"] == {}
    assert 0 <= record["percent"]["sem_seg"]["mIoU"] <= 100
    log = (tmp_path / "out/log.txt").read_text()
    assert f"mIoU in percent on {name}:\ntask        mIoU   fwIoU    mACC    pACC\nsem_seg" in log


def test_panoptic(tmp_path):
    pytest.importorskip("panopticapi")
    name = small_sets.register_panoptic(tmp_path / "set")
    out = ("OUTPUT_DIR", tmp_path / "out", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    # COCO's limits are larger than these images.
    combine = "MODEL.PANOPTIC_FPN.COMBINE."
    limits = (f"{combine}STUFF_AREA_LIMIT", 0, f"{combine}INSTANCES_CONFIDENCE_THRESH", 0.0)
    assert run(PANOPTIC, *on(name), *out, *limits) == 0
    record = results_of(tmp_path / "out")
    assert set(record["ap_percent"]) == {"bbox", "segm"}
    assert set(record["percent"]) == {"sem_seg", "panoptic_seg"}
    assert 0 <= record["percent"]["panoptic_seg"]["PQ"] <= 100


def test_panoptic_models_on_label_images_and_objects(tmp_path):
    """Without the package for panoptic quality: training on both, evaluation of each alone."""
    name = small_sets.register_panoptic(tmp_path / "set")
    semantic, objects = "small_panoptic_stuffonly", small_sets.register_coco(tmp_path / "objects")
    options = (*on(name, "train"), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    tests = ("DATASETS.TEST", f"('{semantic}', '{objects}')")
    assert run(PANOPTIC, *options, *tests, "OUTPUT_DIR", tmp_path / "out") == 0
    record = results_of(tmp_path / "out")
    assert set(record["ap_percent"]) == {f"{objects}/bbox", f"{objects}/segm"}
    assert set(record["percent"]) == {f"{semantic}/sem_seg"}
    assert (tmp_path / "out/inference" / semantic / "sem_seg_predictions.json").is_file()


def test_pascal_voc(tmp_path):
    name = small_sets.register_voc(tmp_path / "set")
    assert run(VOC, *on(name), "OUTPUT_DIR", tmp_path / "out") == 0
    assert set(results_of(tmp_path / "out")["ap_percent"]["bbox"]) == {"AP", "AP50", "AP75"}


def test_lvis(tmp_path):
    pytest.importorskip("lvis")
    name = small_sets.register_lvis(tmp_path / "set")
    out = ("OUTPUT_DIR", tmp_path / "out", "MODEL.ROI_HEADS.NUM_CLASSES", 1203)
    assert run(LVIS, *on(name), *out) == 0
    record = results_of(tmp_path / "out")
    assert {"APr", "APc", "APf"} < set(record["ap_percent"]["segm"])


@pytest.mark.parametrize("task", ["instance", "sem_seg"])
def test_cityscapes(tmp_path, task):
    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    name = small_sets.register_cityscapes(tmp_path / "set", task)
    config = CITYSCAPES if task == "instance" else SEMANTIC
    classes = ("MODEL.ROI_HEADS.NUM_CLASSES", 8, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19)
    assert run(config, *on(name), *classes, "OUTPUT_DIR", tmp_path / "out") == 0
    record = results_of(tmp_path / "out")
    if task == "instance":
        assert set(record["ap_percent"]["segm"]) == {"AP", "AP50"}
    else:
        assert 0 <= record["percent"]["sem_seg"]["IoU"] <= 100


SIGMAS = ("TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]")
THREE = ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3, *SIGMAS)


def test_keypoints_of_a_coco_file(tmp_path):
    path, images = small_sets.write_coco(tmp_path / "set", keypoints=True)
    flags = ("--train-json", str(path), "--train-images", str(images))
    flags += ("--val-json", str(path), "--val-images", str(images))
    assert run(KEYPOINTS, *THREE, "OUTPUT_DIR", tmp_path / "out", flags=flags) == 0
    record = results_of(tmp_path / "out")
    assert set(record["ap_percent"]) == {"bbox", "keypoints"}
    # The training set need not be there for an evaluation.
    train_again = ("OUTPUT_DIR", tmp_path / "eval", "DATASETS.TRAIN", "('gone',)")
    weights = ("MODEL.WEIGHTS", tmp_path / "out/model_final.pth")
    only = ("--eval-only", *flags[4:])
    assert run(KEYPOINTS, *THREE, *train_again, *weights, flags=only) == 0
    assert results_of(tmp_path / "eval")["ap_percent"] == record["ap_percent"]


def test_proposals_and_a_model_that_is_given_them(tmp_path):
    name = small_sets.register_coco(tmp_path / "set")
    first = tmp_path / "proposals"
    assert run(PROPOSALS, *on(name), "OUTPUT_DIR", first) == 0
    record = results_of(first)
    assert {"AR@100", "AR@1000"} < set(record["percent"]["box_proposals"])
    assert "AR@100 in percent on small_coco" in (first / "log.txt").read_text()
    file = first / "inference/box_proposals.pkl"
    files = [x for s in ("TRAIN", "TEST") for x in (f"DATASETS.PROPOSAL_FILES_{s}", f"('{file}',)")]
    assert run(PRECOMPUTED, *on(name), *files, "OUTPUT_DIR", tmp_path / "boxes") == 0
    assert set(results_of(tmp_path / "boxes")["ap_percent"]) == {"bbox"}


def test_augmentation_at_test_time(tmp_path):
    name = small_sets.register_coco(tmp_path / "set")
    options = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", 96)
    expected = ("TEST.EXPECTED_RESULTS", "[['segm_TTA', 'AP', 50.0, 50.0]]")
    assert run(MASKS, *on(name), *options, *expected, "OUTPUT_DIR", tmp_path) == 0
    record = results_of(tmp_path)
    assert set(record["ap_percent"]) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    plain, augmented = (
        json.loads((tmp_path / folder / "coco_instances_results.json").read_text())
        for folder in ("inference", "inference_TTA")
    )
    assert plain != augmented


def test_a_set_without_annotations_gives_the_file_of_results(tmp_path):
    name = small_sets.register_coco(tmp_path / "set", annotations=False)
    train_set = small_sets.register_coco(tmp_path / "train", "small_train")
    sets = (*on(train_set, "train"), *on(name, "test"))
    assert run(MASKS, *sets, "OUTPUT_DIR", tmp_path / "out") == 0
    assert results_of(tmp_path / "out")["ap_percent"] == {}
    found = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
    assert found[0]["category_id"] == 7
    log = (tmp_path / "out/log.txt").read_text()
    assert f"{name}: there are no annotations to evaluate with. What the model found is in" in log
