#!/usr/bin/env python
"""Plot the loss of several runs of tools/train_net.py over their iterations.

example:
  tools/plot_losses.py BN=output/BN EvoNormS0=output/S0 --out losses.png
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from evonorm_plugins.files import replacing

COLOURS = ("#d1495b", "#e0a030", "#30638e", "#1b998b", "#6a4c93", "#555555")


def read_losses(run):
    """Iterations and total losses of ``run/steps.csv``; of one written twice, the later.

    Raises:
        ValueError: there is no such file, or it has no steps.
    """
    path = Path(run, "steps.csv")
    if not path.is_file():
        raise ValueError(f"there is no {path}; it is written by tools/train_net.py")
    with open(path) as f:
        steps = {int(row["iteration"]): float(row["total_loss"]) for row in csv.DictReader(f)}
    if not steps:
        raise ValueError(f"{path} has no steps")
    iterations = sorted(steps)
    return np.array(iterations), np.array([steps[i] for i in iterations])


def plot_losses(runs, out, window=10, title=""):
    """Write ``out``: thin lines are the losses, thick ones their mean over ``window`` steps.

    Args:
        runs: ``{label: (iterations, losses)}``.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for k, (label, (iterations, losses)) in enumerate(runs.items()):
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(iterations, losses, color=colour, alpha=0.25, linewidth=0.8)
        if len(losses) >= window:
            mean = np.convolve(losses, np.ones(window) / window, "valid")
            axes.plot(iterations[window - 1 :], mean, color=colour, linewidth=2, label=label)
    axes.set(xlabel="iteration", ylabel="total loss", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(out) as partial:
        figure.savefig(partial, dpi=150)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR")
    parser.add_argument("--out", default="losses.png")
    parser.add_argument("--window", type=int, default=10, help="steps of the mean (default: 10)")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    if any("=" not in run for run in args.runs):
        parser.error("runs are given as LABEL=DIR")
    try:
        runs = {label: read_losses(path) for label, path in (r.split("=", 1) for r in args.runs)}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plot_losses(runs, args.out, args.window, args.title)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
