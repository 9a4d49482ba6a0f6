"""What a search found, as plain values and as text."""

import dataclasses
import statistics
import time
from collections import Counter

from evonorm_plugins.search.pareto import pareto_front
from evonorm_plugins.text_table import aligned

# Results that a rate is over.
_RECENT = 100
# Best candidates whose mean is the measure of progress (paper, Figure 10).
TOP = 10
# In the order of their costs.
_OUTCOMES = ("not finite", "constant", "flat", "propagation", "ascent", "rungs", "stability")
_OUTCOMES += ("quality", "top", "training", "passed", "failed")


def numbers(store, cpus=1, found=None):
    """Results by outcome, what they cost and how fast they came, as plain values.

    ``different`` are those that are not equal to an earlier one, whose results they take without a
    worker. ``hours`` are those between the first result and the last, by the clock; ``stages`` is
    what :func:`stages` gives. ``whole_trainings`` is how many times as long it would take to train
    all of them to the end without filters, estimated from those that passed; None where none has.

    Args:
        cpus: CPUs of a worker, for core hours.
        found: the store's candidates with a result, where they have been read.
    """
    found = store.finished() if found is None else found
    tried = different(found)
    outcomes = {}
    for outcome in _OUTCOMES:
        own = [c for c in found if (c.filter or c.status) == outcome]
        if own:
            once = different(own)
            outcomes[outcome] = {
                "results": len(own),
                "different": len(once),
                "seconds": sum(c.cost for c in once),
            }
    spent = Counter()
    for c in tried:
        spent.update(c.seconds)
    cost = sum(c.cost for c in tried)
    redrawn = Counter()
    for c in found:
        redrawn.update(c.redrawn)
    whole = [c.seconds.get("quality", 0) + c.seconds["training"] for c in tried if c.scores]
    return {
        "results": len(found),
        "different": len(tried),
        "handed_out": len(store.pending()),
        "redrawn": dict(redrawn),
        "outcomes": outcomes,
        "hours": (found[-1].finished_at - found[0].finished_at) / 3600 if found else 0.0,
        "core_hours": cost * cpus / 3600,
        "stages": stages(found, store.config.get("filters", ())),
        "stage_seconds": dict(spent),
        "whole_trainings": statistics.fmean(whole) * len(tried) / cost if whole and cost else None,
    }


def summary(n):
    """What :func:`numbers` gave, as text."""
    if not n["results"]:
        return "no results yet"
    lines = [
        f"{n['results']} candidates, {n['different']} of them different, "
        f"{n['handed_out']} more handed out",
        "                    all  different                  time",
    ]
    if n["redrawn"]:
        why = ", ".join(f"{count} by {how}" for how, count in n["redrawn"].items())
        lines.insert(1, f"proposals that were drawn anew, equal to a known one: {why}")
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


def overview(store):
    """What a search has come to, as plain values and candidates.

    Returns:
        ``{"numbers": ..., "finished": ..., "best": ..., "front": ..., "ancestors": ...}``:
        :func:`numbers`; all candidates with a result; the best :data:`TOP`; those that no other
        beats on all anchors, highest mean first; the best one, its parent, and so on.
    """
    finished = store.finished()
    passed = [c for c in different(finished) if c.status == "passed"]
    front = pareto_front(passed, key=lambda c: tuple(c.scores.values()))
    best = store.best(TOP)
    return {
        "numbers": numbers(store, store.config.get("cpus_per_worker", 1), finished),
        "finished": finished,
        "best": best,
        "front": sorted(front, key=lambda c: -c.score),
        "ancestors": ancestors(store, best[0]) if best else [],
    }


def page(store):
    """What a search has come to, for those who follow it, as text."""
    o = overview(store)
    parts = [summary(o["numbers"])]
    found = different(o["finished"])
    if found:
        parts.append(_pace(found))
    if o["best"]:
        parts += ["", f"the best {len(o['best'])}:", table(o["best"])]
        front = f"the front, {len(o['front'])} that no other beats:"
        parts += ["", front, table(o["front"][:TOP])]
        parts += ["", "the best one and its ancestors:", table(o["ancestors"])]
    return "\n".join(parts)


def _pace(found):
    """Of the last results, by the clock: how fast they came and how long ago."""
    times = [c.finished_at for c in found[-_RECENT:]]
    ago = f"the last result {time.time() - times[-1]:.0f} s ago"
    if times[-1] <= times[0]:
        return ago
    rate = (len(times) - 1) / (times[-1] - times[0]) * 3600
    return f"{rate:.0f} different candidates an hour over the last {len(times)}; {ago}"


def stages(candidates, filters):
    """What each filter and the training of whole models were given, refused and cost.

    Args:
        candidates: with a result; those equal to an earlier one are left out.
        filters: names, in order; what is not refused by the last one is trained.

    Returns:
        ``[{"stage": ..., "came": ..., "refused": ..., "seconds": ..., "passed": ...}, ...]``;
        seconds are those of workers, all together; ``passed`` is the share that went on.
    """
    found = []
    tried = different(candidates)
    for stage in (*filters, "training"):
        came = [c for c in tried if stage in c.seconds]
        reasons = ("not finite", "constant", "flat") if stage == "trial" else (stage,)
        refused = sum(c.filter in reasons for c in came)
        seconds = sum(c.seconds[stage] for c in came)
        passed = 1 - refused / len(came) if came else None
        row = {"stage": stage, "came": len(came), "refused": refused}
        found.append({**row, "seconds": seconds, "passed": passed})
    return found


def ancestors(store, candidate):
    """A candidate, its parent, and so on: the first that was not mutated from another is last."""
    line = [candidate]
    while line[-1].parent is not None:
        line.append(store[line[-1].parent])
    return line


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
    return aligned([head, *rows], left=(len(head) - 1,))


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
    for k, candidate in enumerate(different(candidates), 1):
        if candidate.status == "passed":
            best = sorted([*best, candidate.score], reverse=True)[:count]
        if best:
            found.append((k, statistics.fmean(best), statistics.pstdev(best), len(best)))
    return found


def rank_correlation(xs, ys):
    """Spearman's, or None where there are fewer than two different values."""
    try:
        return statistics.correlation(_ranks(xs), _ranks(ys))
    except statistics.StatisticsError:
        return None


def _ranks(values):
    # Equal values have the mean of their ranks.
    return [sum(v < x for v in values) + sum(v == x for v in values) / 2 for x in values]


def different(candidates):
    """Those that are not equal to an earlier one."""
    return [c for c in candidates if c.same_as is None]
