#!/usr/bin/env python
"""Plot training and validation curves of several runs of a classifier side by side, as Figure 7 of
the paper (arXiv 2004.02967); the last validation accuracy is in the legend.

examples:
  tools/figures/curves.py BN-ReLU=output/bn EvoNormB0=output/b0 --out curves.png
  all trials of a sweep:
    tools/figures/curves.py output/mini_inception_study --out curves.png
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from evonorm_plugins.errors import ConfigError, DataError, run_command
from evonorm_plugins.files import check_output
from evonorm_plugins.plots import COLOURS, is_ours, labelled, pyplot, running_mean, save_figure
from evonorm_plugins.training.records import read_records

STYLES = list(itertools.product(("-", "--", ":"), COLOURS))


def folders_of(texts):
    """``{label: folder of a run}`` of ``LABEL=DIR`` strings, or of the one folder of a sweep.

    Raises:
        ConfigError: the form of a string, or too many runs.
    """
    found = labelled(texts, "DIR") if "=" in texts[0] or len(texts) > 1 else _trials(texts[0])
    if len(found) > len(STYLES):
        raise ConfigError(f"{len(found)} runs are too many for one picture: at most {len(STYLES)}")
    return found


def _trials(folder):
    try:
        sweep = json.loads(Path(folder, "sweep.json").read_text(encoding="utf-8"))
        trials = {trial["trial"]: trial["values"] for trial in sweep["trials"]}
        # In the order of the values that were tried.
        order = {key: list(map(str, values)) for key, values in sweep["search"].items()}
        places = {n: [order[k].index(str(v)) for k, v in t.items()] for n, t in trials.items()}
        return {
            ", ".join(map(str, trials[n].values())): Path(folder, "trials", f"{n:03d}")
            for n in sorted(trials, key=places.get)
        }
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder} is neither LABEL=DIR nor the folder of a sweep ({type(error).__name__})"
        ) from None


def read_run(folder):
    """``(steps of training, validations)``: the records of ``metrics.jsonl``.

    Raises:
        DataError: there are none of one kind.
    """
    path = Path(folder, "metrics.jsonl")
    records = read_records(path)
    steps = [r for r in records if r.get("loss") is not None and "val_loss" not in r]
    validations = [r for r in records if r.get("val_loss") is not None]
    if not (steps and validations):
        raise DataError(
            f"{path} is not there or has no validation; tools/train_classifier.py writes it"
        )
    return steps, validations


def plot(runs, out, window=5):
    """Write ``out``: loss and accuracy, in training and in validation.

    Args:
        runs: ``{label: what read_run() gives}``.
        window: records of training that a point is the mean of.
    """
    figure, panels = pyplot().subplots(
        2, 2, figsize=(11, 7), layout="constrained", sharex=True, sharey="row"
    )
    for (line, colour), (label, (steps, validations)) in zip(STYLES, runs.items(), strict=False):
        accuracy = validations[-1]["val_accuracy"]
        style = {"color": colour, "linestyle": line, "linewidth": 1.4}
        style["label"] = f"{label} ({accuracy:.1%})"
        # Records of training have no epoch of their own.
        per_step = validations[-1]["epoch"] / validations[-1]["step"]
        places, epochs = [r["step"] * per_step for r in steps], [r["epoch"] for r in validations]
        for row, key in zip(panels, ("loss", "accuracy"), strict=True):
            row[0].plot(*running_mean(places, [r[key] for r in steps], window), **style)
            row[1].plot(epochs, [r[f"val_{key}"] for r in validations], marker=".", **style)
            row[0].set_ylabel(key)
    for axes, title in zip(panels[0], ("training", "validation"), strict=True):
        axes.set_title(title)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    for axes in panels[1]:
        axes.set_xlabel("epoch")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, out, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR", help="or the folder of a sweep")
    parser.add_argument("--out", default="curves.png")
    parser.add_argument(
        "--window", type=int, default=5, help="records of training in a mean (default: 5)"
    )
    args = parser.parse_args(argv)
    if args.window < 1:
        parser.error(f"--window {args.window} must be at least 1")
    return run_command(lambda: run(args))


def run(args):
    runs = {label: read_run(folder) for label, folder in folders_of(args.runs).items()}
    check_output(args.out, ours=is_ours)
    plot(runs, args.out, args.window)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
