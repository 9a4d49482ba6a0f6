"""evonorm-eval ap --config-file: the numbers of Detectron2's own evaluation."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
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

    import evonorm_plugins.integrations.detectron2  # noqa: F401
    from evonorm_plugins.integrations.detectron2.data import register_coco
    from evonorm_plugins.integrations.detectron2.engine import Trainer

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
        return folder / "model.pth", Trainer.test(cfg, model)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "gone.pth"}, "there is no checkpoint gone.pth"),
        ({"opts": ["MODEL.NOTHING", "1"]}, "MODEL.NOTHING"),
        ({"opts": ["MODEL.WEIGHTS"]}, "list of pairs"),
        ({"opts": [*SMALL, "MODEL.RESNETS.NORM", "GN"]}, "trained with another norm"),
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
