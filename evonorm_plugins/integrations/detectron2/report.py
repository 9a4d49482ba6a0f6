"""What a run leaves behind: a table, results.json and a picture."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.data.transforms import ResizeShortestEdge

import evonorm_plugins
from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.detectron2.census import logger, norms_of
from evonorm_plugins.integrations.detectron2.pictures import draw_predictions

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def ap_table(results):
    """The AP of boxes and masks, in percent, as lines of text."""
    lines = ["task   " + "".join(f"{name:>8}" for name in _METRICS)]
    for task in ("bbox", "segm"):
        if task in results:
            values = (results[task].get(name, float("nan")) for name in _METRICS)
            lines.append(f"{task:<7}" + "".join(f"{value:8.2f}" for value in values))
    return "\n".join(lines)


def write_report(cfg, model, results, cost, command, images=6):
    """Log the AP table and write ``results.json`` and ``predictions.png`` to ``cfg.OUTPUT_DIR``.

    Args:
        model: the trained model; left in the mode it is in.
        results: what ``Trainer.test`` returned; AP in percent.
        cost: ``StepRecord.summary()``, or None.
        images: how many images of the first test set the picture shows.
    """
    model = model.module if hasattr(model, "module") else model
    record = {
        "ap_percent": {k: {n: _finite(v) for n, v in r.items()} for k, r in results.items()},
        "dataset": list(cfg.DATASETS.TEST),
        "weights": cfg.MODEL.WEIGHTS,
        "norms": sorted(set(norms_of(model).values())),
        "cost": cost,
        "command": command,
        "versions": {"evonorm_plugins": evonorm_plugins.__version__, "torch": torch.__version__},
    }
    path = Path(cfg.OUTPUT_DIR, "results.json")
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    if results:
        logger.info("AP in percent on %s:\n%s", ", ".join(cfg.DATASETS.TEST), ap_table(results))
    if cost and cost["seconds_per_iteration"]:
        logger.info(
            "%.3f s per iteration (median), peak memory %.0f MiB (%s)",
            cost["seconds_per_iteration"], cost["peak_memory_mib"], cost["peak_memory_of"],
        )  # fmt: skip
    if cfg.DATASETS.TEST:
        picture = Path(cfg.OUTPUT_DIR, "predictions.png")
        picture_predictions(cfg, model, cfg.DATASETS.TEST[0], picture, images)
        logger.info("Wrote %s and %s.", path, picture)


def picture_predictions(cfg, model, dataset, path, images):
    """Draw ground truth beside what the model finds."""
    dicts = [d for d in DatasetCatalog.get(dataset) if d["annotations"]][:images]
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    training = model.training
    model.eval()
    shown, predictions = [], []
    for record in dicts:
        image = detection_utils.read_image(record["file_name"], format="RGB")
        ordered = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
        tensor = torch.from_numpy(resized.astype("float32").transpose(2, 0, 1).copy())
        height, width = image.shape[:2]
        with torch.no_grad():
            output = model([{"image": tensor, "height": height, "width": width}])[0]
        shown.append(image)
        predictions.append(output["instances"])
    model.train(training)
    classes = MetadataCatalog.get(dataset).thing_classes
    draw_predictions(shown, dicts, predictions, classes, path)


def _finite(value):
    return value if np.isfinite(value) else None
