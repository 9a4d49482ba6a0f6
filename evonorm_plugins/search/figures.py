"""Pictures of what a search found, or several side by side. matplotlib is imported to draw.

Each takes ``searches``, ``{label: candidates in the order of results}``. ``baselines`` are layers
that were not searched for, ``{label: what evaluate() found, as a dictionary}``.
"""

import itertools
import math
import statistics

from evonorm_plugins.plots import COLOURS, pyplot, save_figure
from evonorm_plugins.search.report import TOP, different, progress_of_top, rank_correlation

_LINES = ("--", "-.", ":")  # of baselines


def plot_top(searches, path, baselines=None, count=TOP):
    """Mean and deviation of the top candidates against different ones (paper, Figure 10).

    Dotted, and without the deviation, where fewer than ``count`` have passed. A baseline's mean
    over the anchors is a dashed line.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (label, candidates), colour in zip(searches.items(), itertools.cycle(COLOURS)):
        curve = progress_of_top(candidates, count)
        if not curve:
            continue
        full = [point for point in curve if point[3] == count]
        few = curve[: len(curve) - len(full) + 1]
        axes.plot([p[0] for p in few], [p[1] for p in few], ":", color=colour)
        x, mean, deviation = [[p[k] for p in full] for k in range(3)]
        axes.plot(x, mean, color=colour, label=label)
        low = [m - d for m, d in zip(mean, deviation, strict=True)]
        high = [m + d for m, d in zip(mean, deviation, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    _dashed(axes, baselines)
    axes.set_xlabel("different candidates")
    axes.set_ylabel(f"validation accuracy of the best {count}")
    axes.legend()
    save_figure(figure, path)


def plot_time(searches, path, baselines=None):
    """Mean accuracy of each candidate that passed against the hours since the first result.

    A line is the best so far. A baseline's mean over the anchors is a dashed line.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (label, candidates), colour in zip(searches.items(), itertools.cycle(COLOURS)):
        found = _scored(candidates)
        hours = [(c.finished_at - candidates[0].finished_at) / 3600 for c in found]
        means = [c.score for c in found]
        axes.scatter(hours, means, s=10, color=colour, alpha=0.6)
        axes.step(hours, list(itertools.accumulate(means, max)), where="post", color=colour)
        axes.plot([], [], color=colour, label=label)
    _dashed(axes, baselines)
    axes.set_xlabel("hours since the first result")
    axes.set_ylabel("mean validation accuracy")
    axes.legend()
    save_figure(figure, path)


def plot_histogram(searches, path, baselines=None):
    """How many candidates have which accuracy, one panel for each anchor (paper, Figure 2).

    A baseline is a dashed bar at its accuracy on that anchor.
    """
    scores = {label: [c.scores for c in _scored(found)] for label, found in searches.items()}
    bars = {label: found["scores"] for label, found in (baselines or {}).items()}
    _histograms(scores, bars, "validation accuracy", path)


def plot_quality(searches, path, baselines=None):
    """The same after the steps of the quality filter; how many came to it is in the legend."""
    scores = {}
    for label, candidates in searches.items():
        tried = different(candidates)
        found = [c.details["quality"] for c in tried if "quality" in c.details]
        scores[f"{label}: {len(found)} of {len(tried)}"] = found
    bars = {label: found["details"]["quality"] for label, found in (baselines or {}).items()}
    _histograms(scores, bars, "validation accuracy at the quality filter", path)


def _histograms(scores, bars, axis, path):
    """``{label: [{anchor: accuracy}, ...]}`` as histograms, one panel for each anchor.

    ``bars`` are the baselines, ``{label: {anchor: accuracy}}``.
    """
    plt = pyplot()
    anchors = list(
        dict.fromkeys(anchor for found in scores.values() for s in found for anchor in s)
    )
    size = (max(3.2 * len(anchors), 5), 3.4)
    figure, axes = plt.subplots(1, len(anchors), figsize=size, layout="constrained", squeeze=False)
    highest = max(a for found in scores.values() for s in found for a in s.values())
    bins = [k / 100 for k in range(math.ceil(100 * highest) + 2)]
    for panel, anchor in zip(axes[0], anchors, strict=True):
        for (label, found), colour in zip(scores.items(), itertools.cycle(COLOURS)):
            values = [s[anchor] for s in found if anchor in s]
            panel.hist(values, bins, histtype="step", color=colour, linewidth=1.5, label=label)
        for (label, bar), line in zip(bars.items(), itertools.cycle(_LINES)):
            panel.axvline(bar[anchor], color="black", linestyle=line, linewidth=1, label=label)
        panel.set_title(anchor)
        panel.set_xlabel(axis)
        panel.set_yscale("log")
        panel.set_ylim(bottom=0.7)
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.yaxis.set_minor_formatter("")
    axes[0][0].set_ylabel("layers")
    _legend(figure, axes)
    save_figure(figure, path)


def plot_calibration(searches, path, baselines=None):
    """Accuracy on each anchor against that on every other one, with Spearman's correlation.

    A layer that several searches trained with the same seed counts once in the correlation. A
    baseline is a cross, which does not count.
    """
    plt = pyplot()
    passed = {label: _scored(candidates) for label, candidates in searches.items()}
    anchors = list(next(c.scores for found in passed.values() for c in found))
    pairs = list(itertools.combinations(anchors, 2)) or [(anchors[0], anchors[0])]
    size = (max(3.6 * len(pairs), 4.2), 4)
    figure, axes = plt.subplots(1, len(pairs), figsize=size, layout="constrained", squeeze=False)
    found_once = {(c.graph.digest(), c.seed): c for found in passed.values() for c in found}
    everything = [c.scores for c in found_once.values()]
    for panel, (a, b) in zip(axes[0], pairs, strict=True):
        for (label, found), colour in zip(passed.items(), itertools.cycle(COLOURS)):
            xs, ys = [c.scores[a] for c in found], [c.scores[b] for c in found]
            panel.scatter(xs, ys, s=8, color=colour, alpha=0.6, label=label)
        for (label, found), cross in zip((baselines or {}).items(), itertools.cycle("x+*1")):
            panel.plot(found["scores"][a], found["scores"][b], cross, color="black", label=label)
        panel.set_xlabel(a)
        panel.set_ylabel(b)
        rank = rank_correlation([s[a] for s in everything], [s[b] for s in everything])
        panel.set_title("" if rank is None else f"rank correlation {rank:.2f}")
    _legend(figure, axes)
    save_figure(figure, path)


FIGURES = {
    "top": plot_top,
    "time": plot_time,
    "histogram": plot_histogram,
    "quality": plot_quality,
    "calibration": plot_calibration,
}


def _dashed(axes, baselines):
    for (label, found), line in zip((baselines or {}).items(), itertools.cycle(_LINES)):
        mean = statistics.fmean(found["scores"].values())
        axes.axhline(mean, color="black", linestyle=line, linewidth=1, label=label)


def _scored(candidates):
    return [c for c in different(candidates) if c.scores]


def _legend(figure, axes):
    """One for all panels, above them, where it hides nothing."""
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
