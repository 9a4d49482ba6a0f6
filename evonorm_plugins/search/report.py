"""What a search found, as text and pictures."""

import dataclasses
import itertools
import math
import statistics

from evonorm_plugins.files import replacing

COLOURS = ("#d1495b", "#30638e", "#1b998b", "#e0a030", "#6a4c93", "#555555")
# Best candidates whose mean is the measure of progress (paper, Figure 10).
TOP = 10
# In the order of their costs.
_OUTCOMES = ("not finite", "constant", "flat", "stability", "quality")
_OUTCOMES += ("training", "passed", "failed")


def numbers(store, cpus=1):
    """Results by outcome, what they cost and how fast they came, as plain values.

    ``different`` are those that are not equal to an earlier one, whose results they take without a
    worker. ``whole_trainings`` is how many times as long it would take to train all of them to the
    end without filters, estimated from those that passed; None where none has.

    Args:
        cpus: CPUs of a worker, for core hours.
    """
    found = store.finished()
    tried = _different(found)
    outcomes = {}
    for outcome in _OUTCOMES:
        own = [c for c in found if (c.filter or c.status) == outcome]
        if own:
            different = _different(own)
            outcomes[outcome] = {
                "results": len(own),
                "different": len(different),
                "seconds": sum(c.cost for c in different),
            }
    stages = {}
    for c in tried:
        for stage, seconds in c.seconds.items():
            stages[stage] = stages.get(stage, 0) + seconds
    cost = sum(c.cost for c in tried)
    whole = [c.seconds.get("quality", 0) + c.seconds["training"] for c in tried if c.scores]
    return {
        "results": len(found),
        "different": len(tried),
        "handed_out": len(store.pending()),
        "outcomes": outcomes,
        "core_hours": cost * cpus / 3600,
        "stage_seconds": stages,
        "whole_trainings": statistics.fmean(whole) * len(tried) / cost if whole and cost else None,
    }


def summary(store, cpus=1):
    """:func:`numbers` as text."""
    n = numbers(store, cpus)
    if not n["results"]:
        return "no results yet"
    lines = [
        f"{n['results']} candidates, {n['different']} of them different, "
        f"{n['handed_out']} more handed out",
        "                    all  different                  time",
    ]
    for outcome, o in n["outcomes"].items():
        share = o["different"] / n["different"]
        lines.append(
            f"  {outcome:<12} {o['results']:>8} {o['different']:>10} {share:>9.1%} "
            f"{o['seconds']:>10.0f} s"
        )
    hours = n["core_hours"]
    if hours:
        passed = n["outcomes"].get("passed", {"different": 0})["different"]
        lines.append(
            f"{hours:.2f} core hours: {n['different'] / hours:.0f} different candidates, "
            f"{passed / hours:.1f} of them passed, in a core hour"
        )
    if n["whole_trainings"]:
        lines.append(
            "training all of them to the end, without filters, would take "
            f"{n['whole_trainings']:.1f} times as long"
        )
    if n["stage_seconds"]:
        total = sum(n["stage_seconds"].values()) or 1
        shares = ", ".join(f"{stage} {s / total:.1%}" for stage, s in n["stage_seconds"].items())
        lines.append(f"time of workers: {shares}")
    return "\n".join(lines)


def plain(candidate):
    """All that is known of one candidate, as plain values."""
    values = dataclasses.asdict(candidate)
    graph = candidate.graph
    return {**values, "graph": graph.to_json(), "formula": str(graph), "score": candidate.score}


def table(candidates):
    """The given candidates, one a line: number, scores, formula."""
    anchors = list(candidates[0].scores)
    head = ["number", "mean", *anchors, "formula"]
    rows = [
        [
            str(c.number),
            f"{c.score:.4f}",
            *(f"{c.scores[a]:.4f}" for a in anchors),
            str(c.graph),
        ]
        for c in candidates
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in [head, *rows]:
        cells = [v.rjust(w) for v, w in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)


def describe(candidate):
    """All that is known of one candidate, which has no number if it is not of a search."""
    c = candidate
    outcome = c.filter or c.status
    head = outcome if c.number is None else f"candidate {c.number}: {outcome}"
    lines = [head, str(c.graph), c.graph.digest()]
    if c.parent is not None:
        lines.append(f"mutated from candidate {c.parent}")
    if c.same_as is not None:
        lines.append(f"equal to candidate {c.same_as}, whose results these are")
    if c.scores:
        accuracies = ", ".join(f"{a} {s:.4f}" for a, s in c.scores.items())
        lines.append(f"validation accuracy: {accuracies}; mean {c.score:.4f}")
    lines += [f"{key}: {value}" for key, value in c.details.items()]
    if c.seconds:
        times = ", ".join(f"{stage} {s:.1f}" for stage, s in c.seconds.items())
        lines.append(f"seconds: {times}")
    if c.error:
        lines.append(f"error: {c.error}")
    return "\n".join(lines)


def progress_of_top(candidates, count=TOP):
    """Mean and deviation of the best so far, after each result from the first that passed on.

    Args:
        candidates: in the order of results; those equal to an earlier one are left out.

    Returns:
        ``[(results so far, mean score of the best, their standard deviation, their number), ...]``;
        there are fewer than ``count`` of them until so many have passed.
    """
    best, found = [], []
    for k, candidate in enumerate(_different(candidates), 1):
        if candidate.status == "passed":
            best = sorted([*best, candidate.score], reverse=True)[:count]
        if best:
            found.append((k, statistics.fmean(best), statistics.pstdev(best), len(best)))
    return found


def plot_top(searches, path, count=TOP):
    """Mean and deviation of the top candidates against different ones (paper, Figure 10).

    Dotted, and without the deviation, where fewer than ``count`` have passed.

    Args:
        searches: ``{label: candidates in the order of results}``.
    """
    plt = _pyplot()
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
    axes.set_xlabel("different candidates")
    axes.set_ylabel(f"validation accuracy of the best {count}")
    axes.legend()
    _save(figure, plt, path)


def plot_histogram(searches, path):
    """How many candidates have which accuracy, one panel for each anchor (paper, Figure 2)."""
    scores = {label: [c.scores for c in _scored(found)] for label, found in searches.items()}
    _histograms(scores, "validation accuracy", path)


def plot_quality(searches, path):
    """The same after the steps of the quality filter; how many came to it is in the legend."""
    scores = {}
    for label, candidates in searches.items():
        tried = _different(candidates)
        found = [c.details["quality"] for c in tried if "quality" in c.details]
        scores[f"{label}: {len(found)} of {len(tried)}"] = found
    _histograms(scores, "validation accuracy at the quality filter", path)


def _histograms(scores, axis, path):
    """``{label: [{anchor: accuracy}, ...]}`` as histograms, one panel for each anchor."""
    plt = _pyplot()
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
        panel.set_title(anchor)
        panel.set_xlabel(axis)
        panel.set_yscale("log")
        panel.set_ylim(bottom=0.7)
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.yaxis.set_minor_formatter("")
    axes[0][0].set_ylabel("layers")
    _legend(figure, axes)
    _save(figure, plt, path)


def plot_calibration(searches, path):
    """Accuracy on each anchor against that on every other one, with Spearman's correlation.

    A layer that several searches trained with the same seed counts once in the correlation.
    """
    plt = _pyplot()
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
        panel.set_xlabel(a)
        panel.set_ylabel(b)
        rank = rank_correlation([s[a] for s in everything], [s[b] for s in everything])
        panel.set_title("" if rank is None else f"rank correlation {rank:.2f}")
    _legend(figure, axes)
    _save(figure, plt, path)


def rank_correlation(xs, ys):
    """Spearman's, or None where there are fewer than two different values."""
    try:
        return statistics.correlation(_ranks(xs), _ranks(ys))
    except statistics.StatisticsError:
        return None


def _ranks(values):
    # Equal values have the mean of their ranks.
    return [sum(v < x for v in values) + sum(v == x for v in values) / 2 for x in values]


FIGURES = {
    "top": plot_top,
    "histogram": plot_histogram,
    "quality": plot_quality,
    "calibration": plot_calibration,
}


def _different(candidates):
    """Those that are not equal to an earlier one."""
    return [c for c in candidates if c.same_as is None]


def _scored(candidates):
    return [c for c in _different(candidates) if c.scores]


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _legend(figure, axes):
    """One for all panels, above them, where it hides nothing."""
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


def _save(figure, plt, path):
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)
    plt.close(figure)
