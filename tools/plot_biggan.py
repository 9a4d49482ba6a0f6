#!/usr/bin/env python
"""Plot the losses and the discriminator's accuracies of runs of biggan.train.

example:
  tools/plot_biggan.py BN-ReLU=output/cifar10_BN-ReLU EvoNormS0=output/cifar10_EvoNormS0 --out c.png
"""

import argparse
import sys
from pathlib import Path

from evonorm_plugins.files import replacing
from evonorm_plugins.training.records import read_records

COLOURS = ("#d1495b", "#30638e", "#1b998b", "#e0a030", "#6a4c93", "#555555")
PANELS = {
    "loss of the discriminator": [("d_loss", "-")],
    "loss of the generator": [("g_loss", "-")],
    "accuracy on real (line) and fake (dots)": [("d_accuracy_real", "-"), ("d_accuracy_fake", ":")],
}


def read_run(folder):
    """The records with losses of a run.

    Raises:
        ValueError: there are none.
    """
    path = Path(folder, "metrics.jsonl")
    records = [r for r in read_records(path) if "d_loss" in r]
    if not records:
        raise ValueError(f"{path} is not there or holds no losses; biggan.train writes it")
    return records


def plot(runs, out):
    """Write ``out`` with a panel for each kind of curve; ``runs`` is ``{label: records}``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(PANELS), figsize=(13, 3.6), layout="constrained")
    for axes, (title, keys) in zip(panels, PANELS.items(), strict=True):
        for colour, (label, records) in zip(COLOURS, runs.items(), strict=False):
            for key, line in keys:
                steps = [r["step"] for r in records]
                values = [r[key] for r in records]
                shown = label if line == "-" else None
                axes.plot(steps, values, line, color=colour, linewidth=1.2, label=shown)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    with replacing(out) as partial:
        figure.savefig(partial, dpi=130)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR")
    parser.add_argument("--out", default="biggan.png")
    args = parser.parse_args(argv)
    if any("=" not in run for run in args.runs) or len(args.runs) > len(COLOURS):
        parser.error(f"runs are given as LABEL=DIR, at most {len(COLOURS)}")
    try:
        runs = {label: read_run(path) for label, path in (r.split("=", 1) for r in args.runs)}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plot(runs, args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
