"""What all pictures with axes share. matplotlib is imported when one is drawn."""

import itertools

from evonorm_plugins.errors import ConfigError, MissingDependencyError
from evonorm_plugins.files import replacing

COLOURS = ("#d1495b", "#30638e", "#1b998b", "#e0a030", "#6a4c93", "#555555", "#8c564b")
SOFTWARE = "evonorm_plugins"  # what every picture says it was made with


def pyplot():
    """matplotlib's ``pyplot``, drawing to files alone.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("matplotlib", "classification") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure, path, dpi=150, file_format="png"):
    """Write a figure, whole or not at all, and close it."""
    # Other formats have no such entry.
    made_with = {"Software": SOFTWARE} if file_format == "png" else None
    with replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format=file_format, metadata=made_with)
    pyplot().close(figure)


def is_ours(path):
    """Whether a file is a picture of this package."""
    with open(path, "rb") as file:
        head = file.read(300)
    return head.startswith(b"\x89PNG") and SOFTWARE.encode() in head


def labelled(texts, what):
    """``{label: value}`` of ``LABEL=VALUE`` strings of a command line.

    Args:
        what: the name of the value in messages, as ``"DIR"``.

    Raises:
        ConfigError: the form of one, or a label that is there twice.
    """
    found = {}
    for text in texts:
        label, equals, value = text.partition("=")
        if not (equals and label and value):
            raise ConfigError(f"{text!r} is not of the form LABEL={what}")
        if label in found:
            raise ConfigError(f"the label {label!r} is there twice")
        found[label] = value
    return found


def running_mean(xs, ys, width):
    """``(xs, ys)`` of the mean over ``width`` values in a row, at the last of them.

    Of fewer values, the mean of all.
    """
    width = min(width, len(ys))
    sums = [0.0, *itertools.accumulate(ys)]
    means = [(b - a) / width for a, b in zip(sums, sums[width:], strict=False)]
    return xs[width - 1 :], means
