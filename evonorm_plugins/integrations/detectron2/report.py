"""What a run leaves behind: a table, results.json and a picture."""

from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.data.transforms import ResizeShortestEdge

from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.pictures import draw_predictions
from evonorm_plugins.integrations.report import report_lines, write_results


def write_report(cfg, model, results, cost, command, images=6):
    """Log the AP table and write ``results.json`` and ``predictions.png`` to ``cfg.OUTPUT_DIR``.

    Args:
        model: the trained model; left in the mode it is in.
        results: what ``Trainer.test`` returned; AP in percent.
        cost: ``StepRecord.summary()``, or None.
        images: how many images of the first test set the picture shows.
    """
    model = model.module if hasattr(model, "module") else model
    path = write_results(
        Path(cfg.OUTPUT_DIR),
        model,
        results,
        cost,
        dataset=list(cfg.DATASETS.TEST),
        weights=cfg.MODEL.WEIGHTS,
        command=command,
    )
    for line in report_lines(results, cost, ", ".join(cfg.DATASETS.TEST)):
        logger.info(line)
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
