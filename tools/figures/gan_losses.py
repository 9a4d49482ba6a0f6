#!/usr/bin/env python
"""Plot the losses and the discriminator's accuracies of runs of biggan.train.

example:
  tools/figures/gan_losses.py BN-ReLU=output/cifar10_BN-ReLU EvoNormS0=output/cifar10_EvoNormS0 \\
      --out c.png
"""

import argparse
import sys
from pathlib import Path

from evonorm_plugins.errors import ConfigError, InputError, run_command
from evonorm_plugins.files import check_output
from evonorm_plugins.plots import COLOURS, is_ours, labelled, pyplot, save_figure
from evonorm_plugins.training.records import read_records

PANELS = {
    "loss of the discriminator": [("d_loss", "-")],
    "loss of the generator": [("g_loss", "-")],
    "accuracy on real (line) and fake (dots)": [("d_accuracy_real", "-"), ("d_accuracy_fake", ":")],
}


def read_run(folder):
    """The records with losses of a run.

    Raises:
        InputError: there are none.
    """
    path = Path(folder, "metrics.jsonl")
    records = [r for r in read_records(path) if "d_loss" in r]
    if not records:
        raise InputError(f"{path} is not there or holds no losses; biggan.train writes it")
    return records


def plot(runs, out):
    """Write ``out`` with a panel for each kind of curve; ``runs`` is ``{label: records}``."""
    figure, panels = pyplot().subplots(1, len(PANELS), figsize=(13, 3.6), layout="constrained")
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
    save_figure(figure, out, dpi=130)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=DIR")
    parser.add_argument("--out", default="biggan.png")
    args = parser.parse_args(argv)
    try:
        folders = labelled(args.runs, "DIR")
    except ConfigError as error:
        parser.error(str(error))
    if len(folders) > len(COLOURS):
        parser.error(f"{len(folders)} runs are more than there are colours, {len(COLOURS)}")
    return run_command(lambda: run(args, folders))


def run(args, folders):
    runs = {label: read_run(folder) for label, folder in folders.items()}
    check_output(args.out, ours=is_ours)
    plot(runs, args.out)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
