"""What a run leaves behind: a table, results.json and a picture."""

from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.pictures import picture_predictions
from evonorm_plugins.integrations.results import Results, report_lines, write_results


def write_report(
    cfg: CfgNode,
    model: nn.Module,
    results: Results,
    cost: dict | None,
    command: list[str],
    images: int = 6,
) -> None:
    """Log the AP table and write ``results.json`` and ``predictions.png`` to ``cfg.OUTPUT_DIR``.

    Args:
        model: the trained model; left in the mode it is in.
        results: what ``Trainer.test`` returned; AP in percent.
        cost: ``StepRecord.summary()``, or None.
        images: how many images of the first test set the picture shows.
    """
    if isinstance(inside := getattr(model, "module", None), nn.Module):
        model = inside
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
