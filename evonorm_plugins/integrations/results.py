"""The results of training a detector: ``results.json`` and what is printed of it."""

import json
import math
from pathlib import Path
from typing import Any

import torch

import evonorm_plugins
from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.model_norms import norms_of

Results = dict[str, dict[str, float]]
_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def report_lines(results: Results, cost: dict | None, dataset: str | None) -> list[str]:
    """Tables of the results and the cost of training, as texts.

    Args:
        results: ``{"bbox": {"AP": ...}, "segm": {...}}`` in percent; nothing if not evaluated.
        cost: ``StepRecord.summary()``, or None.
        dataset: what it was evaluated on.
    """
    lines = []
    for columns, tasks in _tables(results):
        width = max(len(task) for task in ("task", *tasks)) + 1
        wide = max(8, *(len(name) + 1 for name in columns))
        rows = ["task".ljust(width) + "".join(f"{name:>{wide}}" for name in columns)]
        for task in tasks:
            values = (results[task].get(name, float("nan")) for name in columns)
            rows.append(task.ljust(width) + "".join(f"{value:{wide}.2f}" for value in values))
        lines.append("\n".join([f"{columns[0]} in percent on {dataset}:", *rows]))
    if cost and cost["seconds_per_iteration"]:
        lines.append(
            f"{cost['seconds_per_iteration']:.3f} s per iteration (median), peak memory "
            f"{cost['peak_memory_mib']:.0f} MiB ({cost['peak_memory_of']})"
        )
    return lines


def _tables(results: Results) -> list[tuple[list[str], list[str]]]:
    """``(columns, tasks)`` of every table: tasks with AP share one, others stand alone."""
    ap = [task for task, values in results.items() if "AP" in values]
    tables = []
    if ap:
        there = {name for task in ap for name in results[task]}
        tables.append(([name for name in _AP if name in there], ap))
    for task, values in results.items():
        # What has a hyphen is of a single class, as in Detectron2.
        columns = [name for name in values if "-" not in name]
        if task not in ap and columns:
            tables.append((columns, [task]))
    return tables


def write_results(
    folder: Path, model: torch.nn.Module, results: Results, cost: dict | None, **more: Any
) -> Path:
    """Write ``results.json`` to ``folder`` and return its path.

    The AP is there as ``ap_percent``; what has no AP (mIoU, PQ, AR) as ``percent``.

    Args:
        model: its norms are recorded.
        results, cost: as for :func:`report_lines`.
        more: whatever else belongs into the record.
    """
    finite = {k: {n: _finite(v) for n, v in r.items()} for k, r in results.items()}
    others = {k: r for k, r in finite.items() if r and "AP" not in r}
    record = {
        "ap_percent": {k: r for k, r in finite.items() if "AP" in r},
        **({"percent": others} if others else {}),
        "norms": sorted(set(norms_of(model).values())),
        "cost": cost,
        **more,
        "versions": {"evonorm_plugins": evonorm_plugins.__version__, "torch": torch.__version__},
    }
    path = folder / "results.json"
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    return path


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
