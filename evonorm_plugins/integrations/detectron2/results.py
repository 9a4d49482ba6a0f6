"""What a run leaves behind: a table, results.json and a picture."""

from pathlib import Path

from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.pictures import picture_predictions
from evonorm_plugins.integrations.results import report_lines, write_results


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
