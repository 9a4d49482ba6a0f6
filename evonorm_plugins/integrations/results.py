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
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def ap_table(results: Results) -> str:
    """The AP of boxes and masks, in percent, as lines of text."""
    lines = ["task   " + "".join(f"{name:>8}" for name in _METRICS)]
    for task in ("bbox", "segm"):
        if task in results:
            values = (results[task].get(name, float("nan")) for name in _METRICS)
            lines.append(f"{task:<7}" + "".join(f"{value:8.2f}" for value in values))
    return "\n".join(lines)


def report_lines(results: Results, cost: dict | None, dataset: str | None) -> list[str]:
    """The AP table and the cost of training, as texts.

    Args:
        results: ``{"bbox": {"AP": ...}, "segm": {...}}`` in percent; nothing if not evaluated.
        cost: ``StepRecord.summary()``, or None.
        dataset: what it was evaluated on.
    """
    lines = []
    if results:
        lines.append(f"AP in percent on {dataset}:\n{ap_table(results)}")
    if cost and cost["seconds_per_iteration"]:
        lines.append(
            f"{cost['seconds_per_iteration']:.3f} s per iteration (median), peak memory "
            f"{cost['peak_memory_mib']:.0f} MiB ({cost['peak_memory_of']})"
        )
    return lines


def write_results(
    folder: Path, model: torch.nn.Module, results: Results, cost: dict | None, **more: Any
) -> Path:
    """Write ``results.json`` to ``folder`` and return its path.

    Args:
        model: its norms are recorded.
        results, cost: as for :func:`report_lines`.
        more: whatever else belongs into the record.
    """
    record = {
        "ap_percent": {k: {n: _finite(v) for n, v in r.items()} for k, r in results.items()},
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
