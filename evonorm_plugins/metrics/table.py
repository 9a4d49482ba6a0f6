"""Rows of the paper's tables from the records of several runs."""

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evonorm_plugins.coco.read import read_json
from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics.protocol import check_same

_GAN_COLUMNS = {
    "inception_score_mean": ("IS", "{:.2f}", max),
    "fid": ("FID", "{:.2f}", min),
    "kid_mean": ("KID x 1000", "{:.3f}", min),
    "precision_fraction": ("precision", "{:.3f}", max),
    "recall_fraction": ("recall", "{:.3f}", max),
    "density": ("density", "{:.3f}", max),
    "coverage_fraction": ("coverage", "{:.3f}", max),
    "fid_infinity": ("FID at infinite N", "{:.2f}", min),
}
_AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TASKS = {"bbox": "box", "segm": "mask"}


def read_records(paths: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Records of ``evonorm-eval gan`` and ``ap``.

    Raises:
        InputError: a file is none.
        ProtocolError: they were measured in different ways; says how.
    """
    records = []
    for path in paths:
        record = read_json(path)
        if not isinstance(record, dict) or record.get("kind") not in ("gan", "ap"):
            raise InputError(f"{path} was not written by evonorm-eval gan or ap with --out")
        if not _is_complete(record):
            raise InputError(
                f"{path} is damaged: it needs a name, a protocol and runs with scores that are "
                "numbers"
            )
        records.append(record)
    check_same(records, paths)
    return records


def _is_complete(record: dict[str, Any]) -> bool:
    runs = record.get("runs")
    return (
        isinstance(record.get("name"), str)
        and isinstance(record.get("protocol"), dict)
        and isinstance(runs, list)
        and runs != []
        and all(isinstance(run, dict) and _are_scores(run.get("scores")) for run in runs)
    )


def _are_scores(scores: object, nested: bool = True) -> bool:
    return isinstance(scores, dict) and all(
        value is None
        or (isinstance(value, int | float) and not isinstance(value, bool))
        or (nested and _are_scores(value, False))
        for value in scores.values()
    )


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``[{"name", "runs", "columns": {column: {"median", "best"}}}]``, one row for each name.

    Every run of every record with the name counts. Values None (no ground truth) are left out. Rows
    of generated images have ``"training_seeds"``, those of the checkpoints, where they are known,
    and ``"sampling_seeds"``.
    """
    columns = _columns(records)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["name"]].append(record)
    rows = []
    for name, group in groups.items():
        runs = [_flat(run["scores"]) for record in group for run in record["runs"]]
        numbers: dict[str, dict[str, float] | None] = {}
        for key, (column, _, best) in columns.items():
            values = [value for run in runs if (value := run.get(key)) is not None]
            numbers[column] = (
                {"median": statistics.median(values), "best": best(values)} if values else None
            )
        row = {"name": Path(name).name, "runs": len(runs), "columns": numbers}
        rows.append(row | (_seeds(group) if group[0]["kind"] == "gan" else {}))
    return rows


def _seeds(records: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    trained = [_within(record, "input", "fake", "training_seed") for record in records]
    sampled = [run.get("sampling_seed") for record in records for run in record["runs"]]
    found = {"training_seeds": trained, "sampling_seeds": sampled}
    return {key: sorted({s for s in seeds if isinstance(s, int)}) for key, seeds in found.items()}


def _within(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _seeds_text(row: dict[str, Any]) -> str:
    """What a median is over: seeds of training, of sampling where they differ."""
    parts = [
        f"{kind} {', '.join(map(str, seeds))}"
        for kind in ("training", "sampling")
        if (seeds := row[f"{kind}_seeds"]) and (kind == "training" or len(seeds) > 1)
    ]
    return "; ".join(parts) or "-"


def text_rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The same as cells of text: median/best, or one number where there is one run."""
    columns = {column: form for column, form, _ in _columns(records).values()}
    rows = rows_of(records)
    several = any(row["runs"] > 1 for row in rows)
    suffix = " (median/best)" if several else ""
    seeded = [] if records[0]["kind"] == "ap" else ["seeds"]
    table = [["layer", "runs", *seeded, *(f"{column}{suffix}" for column in columns)]]
    for row in rows:
        cells = []
        for column, form in columns.items():
            value = row["columns"][column]
            if value is None:
                cells.append("-")
            elif several:
                cells.append(f"{form.format(value['median'])}/{form.format(value['best'])}")
            else:
                cells.append(form.format(value["median"]))
        seeds = [_seeds_text(row)] if seeded else []
        table.append([row["name"], str(row["runs"]), *seeds, *cells])
    return table


def _columns(records: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str, Callable]]:
    """``{key: (column, format, best of several)}`` of the scores that there are."""
    keys = dict.fromkeys(k for record in records for run in record["runs"] for k in
                         _flat(run["scores"]))  # fmt: skip
    columns = {}
    for key in keys:
        name, bracket, label = key.partition("[")
        if name in _GAN_COLUMNS:
            column, form, best = _GAN_COLUMNS[name]
            columns[key] = f"{column}{' [' + label if bracket else ''}", form, best
        task, _, number = key.partition(".")
        if task in _TASKS and number in _AP_COLUMNS:
            columns[key] = f"{_TASKS[task]} {number}", "{:.1f}", max
    return columns


def _flat(scores: dict[str, Any]) -> dict[str, float | None]:
    """``{"bbox": {"AP": 1}}`` -> ``{"bbox.AP": 1}``; KID as it is printed, times 1000."""
    flat: dict[str, float | None] = {}
    for key, value in scores.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": number for name, number in value.items()}
        else:
            flat[key] = value * 1000 if key.startswith("kid_mean") and value else value
    return flat
