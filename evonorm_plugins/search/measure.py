"""What each filter of a search costs and refuses, and what it refuses wrongly, on a sample."""

import math
import random
import statistics

from evonorm_plugins.errors import GraphError
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.search.evaluate import evaluate
from evonorm_plugins.search.filters import trial
from evonorm_plugins.search.halving import Bars
from evonorm_plugins.search.mutation import mutate, padded, random_graph
from evonorm_plugins.search.store import Candidate
from evonorm_plugins.text_table import aligned

# The paper's filters: what passes them and is trained to the end is good.
_PAPER = ("quality", "stability")
# Share of the good that are the best.
_BEST = 0.25
_TRIES = 1000


def sample(config, number):
    """``(graph, tries)``: candidate ``number`` of the sample, which passes the trial.

    The first are the paper's layers that belong to the search space; then random graphs and
    children of the paper's layers take turns, as in evolution. They are drawn until one passes the
    trial; ``tries`` is how many were.
    """
    known = known_layers(config.space)
    if number < len(known):
        return known[number], 1
    rng = random.Random(f"{config.seed}/sample/{number}")
    for tries in range(1, _TRIES + 1):
        if number % 2:
            graph = random_graph(rng, config.space)
        else:
            parent, other = (padded(rng.choice(known), rng, config.space) for _ in range(2))
            graph = mutate(parent, rng, config.space, config.mutations, config.moves, other)
        if trial(graph) is None:
            return graph, tries
    return graph, _TRIES


def known_layers(space):
    """The paper's layers that belong to a search space and pass the trial, each once."""
    found = {}
    for graph in KNOWN.values():
        try:
            graph.check_space(space)
        except GraphError:
            continue
        if trial(graph) is None:
            found.setdefault(graph.digest(), graph)
    return list(found.values())


def ask_filters(store, config, on_result=lambda candidate: None):
    """Ask every filter of a config about each candidate of the sample, and train all to the end.

    Times are those of the process's threads, so that others on the machine do not count.

    Args:
        store: what is in it is not asked again.
    """
    for number in range(config.candidates):
        if number == store.next_number():
            graph, tries = sample(config, number)
            redrawn = {"trial": tries - 1} if tries > 1 else {}
            store.propose(Candidate(number, graph, seed=config.seed, redrawn=redrawn))
        candidate = store[number]
        if candidate.status == "pending":
            e = evaluate(candidate.graph, config, ask_all=True)
            values = {"scores": e.scores, "details": e.details, "seconds": e.cpu_seconds}
            status = "rejected" if e.filter else "passed"
            cost = sum(e.cpu_seconds.values())
            store.record(number, status, filter=e.filter, cost=cost, **values)
        on_result(store[number])


def numbers(candidates, config):
    """What the filters did, one after the other, as plain values.

    Args:
        candidates: of :func:`ask_filters`.

    Returns:
        ``{"candidates", "good", "best", "filters": [...], "kept": ..., ...}``. Good are those that
        pass the paper's two filters and whose training is finite, best the upper quarter of these
        by their scores. Of each filter: how many come to it, how many of them it refuses, its
        seconds for one, and the share of all good and of the best that it refuses. ``seconds`` and
        ``paper_seconds`` are those of all candidates with these filters and with the paper's alone.
    """
    good = [c for c in candidates if c.scores and not set(_PAPER) & set(c.details["refused"])]
    good = sorted(good, key=lambda c: -c.score)
    best = good[: math.ceil(_BEST * len(good))]
    left, rows, spent = list(candidates), [], 0.0
    for name in config.filters:
        refused = _refused(name, left, config)
        seconds = [c.seconds[name] for c in left if name in c.seconds]
        spent += sum(seconds)
        rows.append(
            {
                "filter": name,
                "come": len(left),
                "refused": len(refused),
                "seconds": statistics.fmean(seconds) if seconds else 0.0,
                "good_refused": _share(refused, good),
                "best_refused": _share(refused, best),
            }
        )
        left = [c for c in left if c.number not in refused]
    spent += sum(c.seconds.get("training", 0) for c in left)
    return {
        "candidates": len(candidates),
        "tries": sum(1 + c.redrawn.get("trial", 0) for c in candidates),
        "good": len(good),
        "best": len(best),
        "filters": rows,
        "trained": len(left),
        "good_lost": 1 - _share({c.number for c in left}, good) if good else 0.0,
        "best_lost": 1 - _share({c.number for c in left}, best) if best else 0.0,
        "seconds": spent,
        "paper_seconds": sum(_paper_seconds(c, good) for c in candidates),
    }


def _refused(name, candidates, config):
    """Numbers of the candidates that a filter refuses."""
    if name not in ("rungs", "top"):
        return {c.number for c in candidates if name in c.details["refused"]}
    # The bars of a search are those of what it draws, not of the paper's layers.
    first = len(known_layers(config.space))
    drawn = [c for c in candidates if c.number >= first] or candidates
    bars = Bars(config.rung_share, config.top_share, 1)
    for c in drawn:
        bars.add({key: c.details[key] for key in (name,) if key in c.details})
    bars = bars.now()
    if name == "top":
        return {c.number for c in candidates if c.details["top"] < bars.get("top", 0)}
    return {
        c.number
        for c in candidates
        if name in c.details["refused"]
        or any(
            accuracy < bars.get(rung, {}).get(anchor, 0)
            for rung, accuracies in c.details["rungs"].items()
            for anchor, accuracy in accuracies.items()
        )
    }


def _share(numbers, candidates):
    return sum(c.number in numbers for c in candidates) / len(candidates) if candidates else 0.0


def _paper_seconds(candidate, good):
    """Of the paper's filters and, of what passes them, the training."""
    stages = ("rungs", *_PAPER)  # a quality filter without rungs takes the time of both
    refused = "stability" in candidate.details["refused"]
    stages = ("stability",) if refused else stages
    trained = candidate.seconds.get("training", 0) if candidate in good else 0
    return sum(candidate.seconds.get(stage, 0) for stage in stages) + trained


def text(n):
    """What :func:`numbers` gave, as a table."""
    head = ["filter", "come", "refused", "CPU seconds for one", "good refused", "best refused"]
    rows = [
        [
            row["filter"],
            str(row["come"]),
            str(row["refused"]),
            f"{row['seconds']:.3f}",
            f"{row['good_refused']:.1%}",
            f"{row['best_refused']:.1%}",
        ]
        for row in n["filters"]
    ]
    return "\n".join(
        [
            f"{n['candidates']} candidates that pass the trial, of {n['tries']}; {n['good']} are "
            f"good: they pass quality and stability; the best of these are {n['best']}",
            aligned([head, *rows]),
            f"{n['trained']} are trained; lost: {n['good_lost']:.1%} of the good, "
            f"{n['best_lost']:.1%} of the best",
            f"{n['seconds']:.0f} CPU seconds; with stability and quality alone "
            f"{n['paper_seconds']:.0f}",
        ]
    )
