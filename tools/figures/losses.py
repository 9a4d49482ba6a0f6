#!/usr/bin/env python
"""Plot the loss of several runs of tools/train_net.py over their iterations.

example:
  tools/figures/losses.py BN=output/BN EvoNormS0=output/S0 --out losses.png
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from evonorm_plugins.errors import ConfigError, DataError, reason, run_command
from evonorm_plugins.files import check_output
from evonorm_plugins.plots import COLOURS, labelled, pyplot, running_mean, save_figure


def read_losses(run):
    """Iterations and total losses of ``run/steps.csv``; of one written twice, the later.

    Raises:
        DataError: there is no such file, or it has no steps.
    """
    path = Path(run, "steps.csv")
    if not path.is_file():
        raise DataError(f"there is no {path}; it is written by tools/train_net.py")
    with open(path) as f:
        try:
            steps = {int(r["iteration"]): float(r["total_loss"]) for r in csv.DictReader(f)}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no record of steps: {reason(error)}") from None
    if not steps:
        raise DataError(f"{path} has no steps")
    iterations = sorted(steps)
    return np.array(iterations), np.array([steps[i] for i in iterations])


def plot_losses(runs, out, window=10, title=""):
    """Write ``out``: thin lines are the losses, thick ones their mean over ``window`` steps.

    Args:
        runs: ``{label: (iterations, losses)}``.
        out: the picture, of a format that matplotlib writes.
        window: steps of the mean; of a run with fewer, all of them.
        title: above the plot.
    """
    figure, axes = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    file_format, known = Path(out).suffix[1:].lower(), figure.canvas.get_supported_filetypes()
    if file_format not in known:
        raise ConfigError(f"--out {out} must end in one of .{', .'.join(sorted(known))}")
    for k, (label, (iterations, losses)) in enumerate(runs.items()):
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(iterations, losses, color=colour, alpha=0.25, linewidth=0.8)
        places, mean = running_mean(iterations, losses, window)
        # One mean alone is a point.
        style = {"color": colour, "linewidth": 2, "marker": "o" if len(mean) == 1 else None}
        axes.plot(places, mean, **style, label=label)
    axes.set(xlabel="iteration", ylabel="total loss", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, out, file_format=file_format)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR")
    parser.add_argument("--out", default="losses.png")
    parser.add_argument("--window", type=int, default=10, help="steps of the mean (default: 10)")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    try:
        runs = labelled(args.runs, "DIR")
    except ConfigError as error:
        parser.error(str(error))
    if args.window < 1:
        parser.error(f"--window {args.window} must be at least 1")
    return run_command(lambda: _plot(args, runs))


def _plot(args, paths):
    check_output(args.out, inputs=[Path(path, "steps.csv") for path in paths.values()], force=True)
    plot_losses({k: read_losses(p) for k, p in paths.items()}, args.out, args.window, args.title)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
