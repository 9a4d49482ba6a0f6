"""A picture of precision over recall."""

import os
from collections.abc import Mapping

import numpy as np

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics.ap import IOU_THRESHOLDS, RECALL_THRESHOLDS, ApResult
from evonorm_plugins.plots import COLOURS, pyplot, save_figure

_SHOWN = (0, 3, 5, 8)  # of the thresholds: IoU 0.50, 0.65, 0.75, 0.90
_NAMES = {"bbox": "boxes", "segm": "masks"}


def check_plot(path: str | os.PathLike) -> None:
    """Raise InputError unless a picture can be drawn and ``path`` ends as its format does."""
    if not os.fspath(path).lower().endswith(".png"):
        raise InputError(f"--plot {path} must end in .png")
    pyplot()


def plot_curves(path: str | os.PathLike, results: Mapping[str, ApResult]) -> None:
    """Draw the mean of all categories' precision over recall, a panel for each task.

    The curves are those whose mean is AP: of each IoU shown the precision at 101 thresholds of
    recall, objects of all sizes, with the largest limit of detections. Categories without ground
    truth are left out.

    Args:
        path: ends in .png.
        results: ``{"bbox" or "segm": ApResult}``.
    """
    figure, axes = pyplot().subplots(
        1, len(results), figsize=(5 * len(results), 4), squeeze=False, layout="constrained"
    )
    for axis, (task, result) in zip(axes[0], results.items(), strict=True):
        summary = result.summary()
        curves = mean_curves(result)
        for colour, k in zip(COLOURS, _SHOWN, strict=False):
            label = f"IoU {IOU_THRESHOLDS[k]:.2f}"
            if curves is not None:
                label += f": AP {curves[k].mean() * 100:.1f}"
                axis.plot(RECALL_THRESHOLDS, curves[k], color=colour, label=label)
        if curves is not None:
            axis.plot(
                RECALL_THRESHOLDS, curves.mean(0), "--", color="black", label="mean of 10 IoU"
            )
            axis.legend(frameon=False)
        title = "no ground truth" if summary["AP"] is None else f"AP {summary['AP'] * 100:.1f}"
        axis.set(title=f"{_NAMES[task]}: {title}", xlabel="recall", ylabel="precision")
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def mean_curves(result: ApResult) -> np.ndarray | None:
    """Precision (T, R), the mean of categories with ground truth; None where there are none."""
    precision = result.precision[:, :, :, 0, -1]
    known = precision[:, :, (precision > -1).all((0, 1))]
    return known.mean(2) if known.size else None
