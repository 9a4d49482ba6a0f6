"""Tables and pictures of the study on nuclei, whose runs tools/experiments/nuclei.py makes."""

import csv
import json
import statistics
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evonorm_plugins.errors import DataError, reason
from evonorm_plugins.files import check_folder, replacing
from evonorm_plugins.plots import COLOURS, SOFTWARE, pyplot, save_figure
from evonorm_plugins.text_table import markdown, spread

POINTS = 50  # of a curve of losses
TASKS = {"bbox": "box", "segm": "mask"}


def read_run(folder, batch):
    """What is kept of the run in a folder.

    Returns:
        ``ap``, results of the last evaluation in percent; ``diverged``, the message of a run whose
        loss was not finite, or None; ``steps``, ``seconds_per_step`` (median of all steps) and
        ``peak_memory_mib``; ``curve``, ``[images, box AP, mask AP]`` of every evaluation;
        ``losses``, ``[images, mean loss since the one before]``.
    """
    with open(folder / "steps.csv") as file:
        steps = {int(r["iteration"]): r for r in csv.DictReader(file)}  # the later of two
    places = sorted(steps)
    losses, seconds = ([float(steps[i][k]) for i in places] for k in ("total_loss", "seconds"))
    width = max(1, len(places) // POINTS)
    means = [
        [(places[k] + width) * batch, round(statistics.fmean(losses[k : k + width]), 4)]
        for k in range(0, len(places) - width + 1, width)
    ]
    diverged = folder / "diverged"
    results = {} if diverged.exists() else json.loads((folder / "results.json").read_text())
    return {
        "ap": _rounded(results.get("ap_percent")),
        "diverged": diverged.read_text().strip() if diverged.exists() else None,
        "steps": len(places),
        "seconds_per_step": round(statistics.median(seconds), 4),
        "peak_memory_mib": round(results["cost"]["peak_memory_mib"]) if results else None,
        "curve": _curve(folder / "metrics.json", len(places), batch),
        "losses": means,
        "versions": results.get("versions"),
    }


def _rounded(ap):
    return ap and {task: {k: v and round(v, 2) for k, v in r.items()} for task, r in ap.items()}


def _curve(path, most, batch):
    """Evaluations in Detectron2's ``metrics.json``, of which one is there twice after a resume.

    The last is recorded at the iteration behind the end.
    """
    points = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        record = json.loads(line)
        if "bbox/AP" in record:
            steps = min(record["iteration"] + 1, most)
            points[steps] = [round(record[f"{task}/AP"], 2) for task in TASKS]
    return [[steps * batch, *ap] for steps, ap in sorted(points.items())]


def shrink(picture, out, width=900):
    """Write a smaller copy of a picture."""
    image = Image.open(picture).convert("RGB")
    image = image.resize(
        (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
    )
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        image.quantize(128).save(partial, format="png", pnginfo=info, optimize=True)


def read_runs(path):
    """Runs of the file that ``collect`` writes.

    Raises:
        DataError: it is none.
    """
    try:
        runs = json.loads(Path(path).read_text())["runs"]
        return [r | {"label": f"{r['backbone']} {r['norm']}"} for r in runs]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of `nuclei.py collect`: {reason(error)}") from None


def report(args):
    """Tables on stdout and pictures, from one file."""
    runs = read_runs(args.results)
    check_folder(args.figures, name="--figures")
    figures = Path(args.figures)
    figures.mkdir(parents=True, exist_ok=True)
    print(table(runs))
    small = [r for r in runs if r["backbone"] == "R-18"]
    for name, draw in (("nuclei_batches", plot_batches), ("nuclei_curves", plot_curves)):
        draw(small, figures / f"{name}.png")
        print(f"\n{figures / name}.png", end="")
    print()


def cells(runs):
    """``{(label, batch): runs}``, of one seed each, in the order of the file."""
    found = {}
    for r in runs:
        found.setdefault((r["label"], r["batch"]), []).append(r)
    return found


def scores(runs, task, key="AP"):
    """Of the runs that ended with results."""
    return [r["ap"][task][key] for r in runs if r["ap"]]


def table(runs):
    """A row for each model and number of images a step, in Markdown."""
    head = ["model", "images a step", "seeds"]
    columns = [(task, key) for task in TASKS for key in ("AP", "AP50", "AP75")]
    head += [*(f"{TASKS[task]} {key}" for task, key in columns), "seconds a step", "MiB"]
    lines = []
    for (label, batch), group in sorted(cells(runs).items()):
        lost = sum(r["diverged"] is not None for r in group)
        seeds = ", ".join(str(r["seed"]) for r in group) + (f" ({lost} diverged)" if lost else "")
        known = [scores(group, *column) for column in columns]
        numbers = [spread(values) if values else "-" for values in known]
        seconds = statistics.median(r["seconds_per_step"] for r in group)
        memory = [r["peak_memory_mib"] for r in group if r["peak_memory_mib"]]
        cost = [f"{seconds:.2f}", str(max(memory)) if memory else "-"]
        lines.append([label, str(batch), seeds, *numbers, *cost])
    return markdown(head, lines)


def plot_batches(runs, out):
    """AP against images a step: means, and a bar from the lowest to the highest seed."""
    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharex=True)
    batches = sorted({r["batch"] for r in runs})
    norms = sorted({r["norm"] for r in runs})
    for axes, (task, name) in zip(panels, TASKS.items(), strict=True):
        for k, norm in enumerate(norms):
            here = {b: scores(_of(runs, norm, b), task) for b in batches}
            places = [b for b in batches if here[b]]
            means = [statistics.fmean(here[b]) for b in places]
            low, high = ([f(here[b]) for b in places] for f in (min, max))
            errors = [
                [m - v for m, v in zip(means, low, strict=True)],
                [v - m for m, v in zip(means, high, strict=True)],
            ]
            style = {"color": COLOURS[k % len(COLOURS)], "marker": "o", "capsize": 3}
            axes.errorbar(places, means, yerr=errors, label=norm, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, batches)
        axes.set(xlabel="images a step", ylabel=f"{name} AP, %")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    save_figure(figure, out, dpi=110)


def plot_curves(runs, out):
    """Training loss and mask AP against images seen, a column for each number of images a step."""
    batches = sorted({r["batch"] for r in runs})
    figure, panels = pyplot().subplots(
        2, len(batches), figsize=(4 * len(batches), 6.4), layout="constrained",
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    norms = sorted({r["norm"] for r in runs})
    for column, batch in zip(panels.T, batches, strict=True):
        for k, norm in enumerate(norms):
            for number, r in enumerate(_of(runs, norm, batch)):
                style = {"color": COLOURS[k % len(COLOURS)], "linewidth": 1.3}
                style |= {"alpha": 0.8, "label": norm if number == 0 else None}
                column[0].plot(*zip(*r["losses"], strict=True), **style)
                if r["curve"]:
                    images, _, ap = zip(*r["curve"], strict=True)
                    column[1].plot(images, ap, marker=".", **style)
        column[0].set(title=f"{batch} image{'s' * (batch > 1)} a step", ylim=(0, 4))
        column[1].set_xlabel("images seen")
        for axes in column:
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("training loss")
    panels[1, 0].set_ylabel("mask AP, %")
    panels[0, 0].legend(frameon=False)
    save_figure(figure, out, dpi=100)


def _of(runs, norm, batch):
    return [r for r in runs if r["norm"] == norm and r["batch"] == batch]
