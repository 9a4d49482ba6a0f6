"""What a sweep leaves behind for people: a table, a CSV file and a picture."""

import csv
import io
import statistics
from pathlib import Path

from evonorm_plugins.classification.sweep.influence import FEWEST, influence, is_numeric
from evonorm_plugins.files import replacing
from evonorm_plugins.text_table import aligned

# What is measured of a trial, and its digits in a table.
_MEASURED = {"val_accuracy": 4, "val_loss": 4, "epoch": 0, "seconds": 0}
_COLOUR, _MEAN, _FAILED = "#1b998b", "#30638e", "#d1495b"


def write(sweep, records):
    """Write ``results.csv``, ``results.txt`` and ``accuracy.png`` into the sweep's folder.

    Args:
        sweep: :class:`Sweep`.
        records: those of the trials that ended, as :func:`run_sweep` returns them.
    """
    if not records:
        return
    folder = Path(sweep.output_dir)
    _replace(folder / "results.csv", as_csv(sweep, records))
    _replace(folder / "results.txt", as_text(sweep, records) + "\n")
    with replacing(folder / "accuracy.png") as partial:
        plot(sweep, records, partial)


def as_text(sweep, records):
    """Tables for people: the trials, the most accurate first; the mean of every value tried; how
    much each option has to do with the accuracy.
    """
    head = ("trial", *sweep.search, "accuracy", "loss", "epoch", "seconds", "status")
    rows = [
        (
            str(r["trial"]),
            *(str(r["values"][key]) for key in sweep.search),
            *(_shown(r.get(key), digits) for key, digits in _MEASURED.items()),
            r["status"],
        )
        for r in ranked(records)
    ]
    lines = [aligned([head, *rows], left=range(len(head))), ""]
    means = [("", "mean accuracy", "best", "trials", "not finished")]
    for key, choices in sweep.search.items():
        for value in choices:
            of = [r for r in records if r["values"][key] == value]
            if not of:
                continue
            found = accuracies(of)
            mean = _shown(statistics.fmean(found) if found else None, 4)
            best = _shown(max(found, default=None), 4)
            means.append((f"{key}={value}", mean, best, str(len(of)), str(len(of) - len(found))))
    lines += [aligned(means, left=range(len(means[0]))), *_influence(sweep, records)]
    ended = [r for r in records if "error" in r]
    lines += ["", *(f"trial {r['trial']} {r['status']}: {r['error']}" for r in ended)]
    return "\n".join(lines).rstrip()


def _influence(sweep, records):
    """Lines with the correlation and the importance of options over the trials that finished."""
    finished = [r for r in records if r["status"] == "finished"]
    if len(finished) < FEWEST:
        return []
    rows = influence(sweep.search, [r["values"] for r in finished], accuracies(finished))
    if not rows:
        return []
    head = ("", "correlation", "importance")
    shown = [(name, _shown(c, 2), _shown(importance, 2)) for name, c, importance in rows]
    lines = ["", aligned([head, *shown], left=range(3))]
    if rows[0][2] is None:
        lines += [
            '(the importance needs scikit-learn: pip install "evonorm-plugins[classification]")'
        ]
    return lines


def as_csv(sweep, records):
    """The same rows for programs, in the order of the trials."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *sweep.search, "status", *_MEASURED, "error"])
    for r in records:
        values = (r["values"][key] for key in sweep.search)
        measured = (r.get(key, "") for key in (*_MEASURED, "error"))
        writer.writerow([r["trial"], *values, r["status"], *measured])
    return text.getvalue()


def plot(sweep, records, path):
    """Accuracy against each parameter: a dot for each trial, a dash at the mean.

    A trial that did not finish is a cross at the bottom.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.4 * len(sweep.search) + 0.6, 4.2)
    figure, panels = plt.subplots(
        1, len(sweep.search), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (key, choices) in zip(panels[0], sweep.search.items(), strict=True):
        choices = _sorted(choices)
        _panel(axes, [[r for r in records if r["values"][key] == value] for value in choices])
        labels = [f"{v:g}" if isinstance(v, float) else str(v) for v in choices]
        long = sum(map(len, labels)) > 24
        axes.set_xticks(
            range(len(choices)), labels, rotation=40 * long, ha="right" if long else "center"
        )
        axes.set(xlabel=key, xlim=(-0.5, len(choices) - 0.5))
        axes.grid(axis="y", alpha=0.3)
    panels[0, 0].set(ylabel="validation accuracy")
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def ranked(records):
    """Finished trials, the most accurate first, then the others."""
    return sorted(records, key=lambda r: -(accuracies([r]) or [-1])[0])


def accuracies(records):
    """Those of the trials that finished; a diverged one's last epoch is no result."""
    return [r["val_accuracy"] for r in records if r["status"] == "finished"]


def summary(record):
    """One line about a trial that ended."""
    if record["status"] != "finished":
        return f"{record['status']}: {record['error']}"
    return f"finished, val_accuracy {record['val_accuracy']:.4f} in {record['seconds']:.0f} s"


def progress(record):
    """One line about an epoch."""
    return f"epoch {record['epoch']:.4g}, val_accuracy {record['val_accuracy']:.4f}"


def _panel(axes, groups):
    """``groups``: the records of each position on the x axis."""
    means = []
    for position, group in enumerate(groups):
        found = accuracies(group)
        # Side by side, in the order of the trials: equal accuracies stay apart.
        spread = [
            position + 0.3 * (k + 0.5 - len(group) / 2) / len(group) for k in range(len(group))
        ]
        finished = [x for x, r in zip(spread, group, strict=True) if r["status"] == "finished"]
        others = [x for x, r in zip(spread, group, strict=True) if r["status"] != "finished"]
        axes.plot(finished, found, "o", color=_COLOUR, alpha=0.6, markersize=5, linewidth=0)
        axes.plot(
            *(others, [0.02] * len(others), "x"),
            color=_FAILED,
            transform=axes.get_xaxis_transform(),
        )
        if found:
            means.append((position, statistics.fmean(found)))
    if means:
        axes.plot(*zip(*means, strict=True), "_", color=_MEAN, markersize=22, markeredgewidth=1.8)


def _sorted(choices):
    return sorted(choices) if is_numeric(choices) else choices


def _shown(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def _replace(path, text):
    with replacing(path) as partial:
        partial.write_text(text)
