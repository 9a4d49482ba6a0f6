"""What a run leaves behind: tables, results.json and a picture."""

from collections.abc import Callable, Mapping
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
    if unscored:
        logger.info(
            "%s: there are no annotations to evaluate with. What the model found is in %s.",
            ", ".join(unscored),
            Path(cfg.OUTPUT_DIR, "inference"),
        )

    def draw(path: Path) -> None:
        picture_predictions(cfg, model, tests[0], path, images)

    about = {"dataset": list(tests), "weights": cfg.MODEL.WEIGHTS, "command": command}
    log_and_write(Path(cfg.OUTPUT_DIR), model, results, cost, about, draw if tests else None)


def log_and_write(
    folder: Path,
    model: nn.Module,
    results: Results,
    cost: dict | None,
    about: dict[str, Any],
    draw: Callable[[Path], object] | None,
) -> None:
    """Log tables and write ``results.json`` and, with ``draw``, ``predictions.png``.

    Args:
        about: what else belongs into the record; ``dataset``, a list of names, is in the tables.
        draw: writes the picture to a path.
    """
    written = [write_results(folder, model, results, cost, **about)]
    for line in report_lines(results, cost, ", ".join(about["dataset"])):
        logger.info(line)
    if draw:
        written.append(folder / "predictions.png")
        draw(written[-1])
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
