"""evonorm-eval ap --config-file: the numbers of Detectron2's own evaluation."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from evonorm_plugins.metrics.weights import file_sha256

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "detectron_configs/quick/mask_rcnn_R_18_FPN_EvoNormS0_shapes.yaml"
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "30"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "60", "DATALOADER.NUM_WORKERS", "0"),
]

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    make = runpy.run_path(str(ROOT / "tools/make_shapes_dataset.py"))["make_shapes_dataset"]
    return make(tmp_path_factory.mktemp("shapes") / "set", train=1, val=4, size=64)


def annotate(json_file, detections):
    """Make every third of the detections an object, so that an untrained model finds some."""
    content = json.loads(Path(json_file).read_text())
    content["annotations"] = []
    for k, detection in enumerate(detections[::3]):
        x, y, w, h = (round(v, 1) for v in detection["bbox"])
        entry = {"id": k + 1, "iscrowd": 0, "area": w * h, "bbox": [x, y, w, h]}
        entry |= {key: detection[key] for key in ("image_id", "category_id")}
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        content["annotations"].append(entry)
    Path(json_file).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def reference(shapes, tmp_path_factory):
    """A checkpoint of an untrained model, and what Detectron2 says of it in percent."""
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import COCOEvaluator

    import evonorm_plugins.integrations.detectron2  # noqa: F401
    from evonorm_plugins.integrations.detectron2.data import register_coco
    from evonorm_plugins.integrations.detectron2.trainer import Trainer

    folder = tmp_path_factory.mktemp("model")
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list([*SMALL, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "('reference',)"])
    register_coco("reference", shapes["val_json"], shapes["val_images"])
    try:
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        Trainer.test(cfg, model)
        found = folder / "inference/coco_instances_results.json"
        annotate(shapes["val_json"], json.loads(found.read_text()))
        DatasetCatalog.remove("reference")
        MetadataCatalog.remove("reference")
        register_coco("reference", shapes["val_json"], shapes["val_images"])
        return folder / "model.pth", Trainer.test(cfg, model, [COCOEvaluator("reference")])
    finally:
        DatasetCatalog.remove("reference")
        MetadataCatalog.remove("reference")


def arguments(shapes, weights):
    return (
        *("ap", "--config-file", CONFIG, "--weights", weights, "--json", "--quiet"),
        *("--val-json", shapes["val_json"], "--val-images", shapes["val_images"]),
    )


def test_numbers_are_those_of_detectron2(shapes, reference, evaluate, tmp_path):
    weights, theirs = reference
    options = ("--save-dt", tmp_path / "dt.json", "--grid", tmp_path / "grid.png", "--opts", *SMALL)
    status, out, err = evaluate(*arguments(shapes, weights), *options)
    assert status == 0, err
    record = json.loads(out)
    for task in ("bbox", "segm"):
        ours = record["ap_percent"][task]
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            expected = theirs[task][name]
            assert ours[name] == (None if np.isnan(expected) else pytest.approx(expected, abs=1e-9))
    assert record["ap_percent"]["bbox"]["AP"] > 10
    assert record["name"] == "EvoNormS0"
    assert record["protocol"]["mask_areas"] == "mask"
    assert record["protocol"]["inference"]["short_side_px"] == 64
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    # The detections that were kept score the same.
    status, out, _ = evaluate(
        *("ap", "--gt", shapes["val_json"], "--dt", tmp_path / "dt.json", "--mask-areas", "--json")
    )
    assert json.loads(out)["ap_percent"] == record["ap_percent"]


def test_the_detections_stay_where_the_last_step_fails(shapes, reference, evaluate, tmp_path):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("evonorm_plugins.metrics.ap.average_precision", fail)
        options = ("--save-dt", tmp_path / "dt.json", "--opts", *SMALL)
        status, _, err = evaluate(*arguments(shapes, reference[0]), *options)
    assert status == 1, err
    assert len(json.loads((tmp_path / "dt.json").read_text())) > 10


def test_the_numbers_stay_where_the_picture_fails(shapes, reference, evaluate, tmp_path):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        name = "evonorm_plugins.integrations.detectron2.evaluate.picture_predictions"
        patched.setattr(name, fail)
        options = ("--grid", tmp_path / "grid.png", "--out", tmp_path / "out.json")
        status, out, err = evaluate(*arguments(shapes, reference[0]), *options, "--opts", *SMALL)
    assert status == 1, err
    assert err.splitlines()[-1] == "error: no space left to write"
    record = json.loads(out)
    assert record == json.loads((tmp_path / "out.json").read_text())
    assert record["ap_percent"]["bbox"]["AP"] > 10


def test_weights_by_url(shapes, reference, evaluate, monkeypatch):
    from detectron2.utils.file_io import PathHandler, PathManager

    class Shelf(PathHandler):
        def _get_supported_prefixes(self):
            return ["shelf://"]

        def _get_local_path(self, path, **_):
            return str(reference[0])

    monkeypatch.setattr(PathManager, "_path_handlers", {**PathManager._path_handlers})
    PathManager.register_handler(Shelf())
    status, out, err = evaluate(*arguments(shapes, "shelf://model.pth"), "--opts", *SMALL)
    assert status == 0, err
    model = json.loads(out)["input"]["model"]
    assert model["weights"] == "shelf://model.pth"
    assert model["weights_sha256"] == file_sha256(reference[0])


def cut_off(shapes, tmp_path):
    """The validation images, the second of them cut off."""
    folder = tmp_path / "images"
    shutil.copytree(shapes["val_images"], folder)
    path = sorted(folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_cut_off_is_named(shapes, reference, evaluate, tmp_path, workers):
    path = cut_off(shapes, tmp_path)
    opts = [*SMALL, "DATALOADER.NUM_WORKERS", str(workers)]
    changed = {**shapes, "val_images": path.parent}
    status, _, err = evaluate(*arguments(changed, reference[0]), "--opts", *opts)
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {path} cannot be read as an image: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("through", ["weights", "config", "base"])
def test_attacks(shapes, reference, evaluate, tmp_path, through):
    witness, weights, config = tmp_path / "ran", reference[0], CONFIG
    if through == "weights":
        weights = tmp_path / "evil.pkl"
        weights.write_bytes(f"cos\nmkdir\n(V{witness}\ntR.".encode())
    else:
        config = tmp_path / "evil.yaml"
        config.write_text(f"A: !!python/object/apply:os.mkdir [{witness}]\n")
        if through == "base":
            config = tmp_path / "plain.yaml"
            config.write_text("_BASE_: evil.yaml\n")
    command = ["ap", "--config-file", config, *arguments(shapes, weights)[3:]]
    status, _, err = evaluate(*command, "--opts", *SMALL)
    assert status == 2
    assert "could run the code of whoever wrote it" in err
    assert not witness.exists()
    evaluate(*command, "--trust-config", "--trust-weights", "--opts", *SMALL)
    assert witness.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-dets", "10", "5"), "must be positive and rise"),
        (("--val-json", __file__), "is not valid JSON"),
        (("--opts", *SMALL, "MODEL.DEVICE", "banana"), "MODEL.DEVICE banana"),
        (("--opts", *SMALL, "MODEL.RESNETS.DEPTH", "33"), "MODEL.RESNETS.DEPTH 33"),
        (("--weights", "http://127.0.0.1:9/w.pkl"), "cannot fetch the checkpoint http://127.0.0.1"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_runs(
    shapes, reference, evaluate, options, message, monkeypatch
):
    from evonorm_plugins.integrations.detectron2.trainer import Trainer

    monkeypatch.delattr(Trainer, "build_test_loader")
    status, _, err = evaluate(*arguments(shapes, reference[0]), *options)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "gone.pth"}, "there is no checkpoint gone.pth"),
        ({"opts": ["MODEL.NOTHING", "1"]}, "MODEL.NOTHING"),
        ({"opts": ["MODEL.WEIGHTS"]}, "--opts come in pairs, KEY VALUE; got MODEL.WEIGHTS"),
        ({"opts": [*SMALL, "MODEL.RESNETS.NORM", "GN"]}, "trained with another norm"),
        (
            {"opts": [*SMALL, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"]},
            "a MODEL.META_ARCHITECTURE SemanticSegmentor finds no objects with boxes to score",
        ),
        (
            {"opts": [*SMALL, "MODEL.LOAD_PROPOSALS", "True"]},
            "DATASETS.PROPOSAL_FILES_TEST must name a file for each of the 1 of DATASETS.TEST",
        ),
        ({"opts": [*SMALL, "MODEL.RESNETS.NORM", "Nothing"]}, "Nothing"),
    ],
)
def test_bad_input(shapes, reference, evaluate, changes, message):
    weights = changes.get("weights", reference[0])
    options = ("--opts", *changes["opts"]) if "opts" in changes else ()
    status, out, err = evaluate(*arguments(shapes, weights), *options)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
