"""What a run leaves behind: tables, results.json and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from evonorm_plugins.errors import RunError
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.pictures import picture_predictions
from evonorm_plugins.integrations.results import Results, report_lines, write_results


def write_report(
    cfg: CfgNode,
    model: nn.Module,
    results: Mapping[str, Any],
    cost: dict | None,
    command: list[str],
    images: int = 6,
) -> None:
    """Log tables and write ``results.json`` and ``predictions.png`` to ``cfg.OUTPUT_DIR``.

    Args:
        model: the trained model; left in the mode it is in.
        results: what ``Trainer.test`` returned, in percent. Of several test sets, a task is called
            ``set/task``.
        cost: ``StepRecord.summary()``, or None.
        images: how many images of the first test set the picture shows.
    """
    if isinstance(inside := getattr(model, "module", None), nn.Module):
        model = inside
    tests = cfg.DATASETS.TEST
    unscored = [n for n in tests if not (results if len(tests) == 1 else results.get(n))]
    results = _by_task(results)
    path = write_results(
        Path(cfg.OUTPUT_DIR),
        model,
        results,
        cost,
        dataset=list(tests),
        weights=cfg.MODEL.WEIGHTS,
        command=command,
    )
    for line in report_lines(results, cost, ", ".join(tests)):
        logger.info(line)
    if unscored:
        logger.info(
            "%s: there are no annotations to evaluate with. What the model found is in %s.",
            ", ".join(unscored),
            Path(cfg.OUTPUT_DIR, "inference"),
        )
    written = [path]
    if tests:
        picture = Path(cfg.OUTPUT_DIR, "predictions.png")
        picture_predictions(cfg, model, tests[0], picture, images)
        written.append(picture)
    logger.info("Wrote %s.", " and ".join(map(str, written)))


def _by_task(results: Mapping[str, Any]) -> Results:
    """Detectron2 gives ``{set: {task: {metric: value}}}`` where there are several sets."""
    by_task = {}
    for name, values in results.items():
        if any(isinstance(value, Mapping) for value in values.values()):
            by_task.update({f"{name}/{task}": dict(v) for task, v in values.items()})
        elif values:
            by_task[name] = dict(values)
    return by_task


def check_expected(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compare with ``TEST.EXPECTED_RESULTS``.

    Raises:
        RunError: a value is not there, not finite, or further away than is tolerated.
    """
    missed = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        value = results.get(task, {}).get(metric)
        if value is None or not abs(value - expected) <= tolerance:
            found = "not among the results" if value is None else f"{value:.4g}"
            missed.append(f"{task} {metric} is {found}, expected {expected:g} +- {tolerance:g}")
    if missed:
        raise RunError(f"TEST.EXPECTED_RESULTS: {'; '.join(missed)}")
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("The results are as TEST.EXPECTED_RESULTS says.")
