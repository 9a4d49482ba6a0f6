"""Layers in the order of their accuracies on several models (paper, Section 5.2)."""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path

from evonorm_plugins.errors import ConfigError, InputError
from evonorm_plugins.search.find import find_layer
from evonorm_plugins.text_table import aligned


@dataclasses.dataclass
class Rank:
    """A layer of a sweep. Accuracies are from 0 to 1.

    ``scores`` is ``{model: mean of the seeds}``, None where there is none. ``mean`` is that of the
    models, None while one has no result or where a training diverged; ``deviation`` is that of the
    seeds' means, None of fewer than two.
    """

    norm: str
    scores: dict
    mean: float | None
    deviation: float | None
    lost: int  # trainings that did not finish


def ranking(search, trials):
    """:class:`Rank` of every layer, the highest mean first; those without a mean last.

    Args:
        search: ``{key: values}`` of a sweep, ``norm`` among them. ``seed`` is that of trainings of
            the same; every other key tells models apart.
        trials: records, as :func:`evonorm_plugins.classification.sweep.run_sweep` returns them.
    """
    keys = [key for key in search if key not in ("norm", "seed")]
    # As text: a value may be a list.
    models = list(itertools.product(*(map(str, search[key]) for key in keys)))
    ranks = []
    for norm in search["norm"]:
        own = [t for t in trials if t["values"]["norm"] == norm]
        finished = [t for t in own if t["status"] == "finished"]
        found = {model: {} for model in models}  # model -> seed -> accuracy
        for t in finished:
            model = tuple(str(t["values"][key]) for key in keys)
            found[model][t["values"].get("seed")] = t["val_accuracy"]
        ranks.append(_rank(norm, found, len(own) - len(finished)))
    return sorted(ranks, key=lambda rank: -1 if rank.mean is None else rank.mean, reverse=True)


def _rank(norm, found, lost):
    scores = {
        ", ".join(model) or "accuracy": statistics.fmean(of.values()) if of else None
        for model, of in found.items()
    }
    complete = [] if lost else set.intersection(*map(set, found.values()))
    means = [statistics.fmean(of[seed] for of in found.values()) for seed in complete]
    mean = statistics.fmean(means) if means else None
    deviation = statistics.pstdev(means) if len(means) > 1 else None
    return Rank(norm, scores, mean, deviation, lost)


def plain(ranks):
    """The same as plain values, a rank for each layer with a mean."""
    return [
        {
            "rank": None if r.mean is None else k,
            **dataclasses.asdict(r),
            "formula": _formula(r.norm),
        }
        for k, r in enumerate(ranks, 1)
    ]


def table(ranks):
    """For people: accuracies in percent, the mean with the deviation of the seeds."""
    head = ["rank", "layer", "mean", *ranks[0].scores, "not finished", "formula"]
    rows = [
        [
            "" if r.mean is None else str(k),
            _short(r.norm),
            _percent(r.mean) + ("" if r.deviation is None else f" ± {100 * r.deviation:.1f}"),
            *map(_percent, r.scores.values()),
            str(r.lost or ""),
            _formula(r.norm),
        ]
        for k, r in enumerate(ranks, 1)
    ]
    return aligned([head, *rows], left=(1, 2, len(head) - 1))


def _short(norm):
    """A name, or the path of a layer without the folder of the sweep."""
    return "/".join(Path(norm).parts[-2:]) if norm.endswith(".json") else norm


def _percent(share):
    return "" if share is None else f"{100 * share:.1f}"


def _formula(norm):
    try:
        return str(find_layer(norm))
    except InputError:
        return ""


def read_sweep(folder):
    """``(search, trials)`` of the sweep in a folder, as :func:`ranking` takes them.

    Raises:
        ConfigError: there is none.
    """
    path = Path(folder, "sweep.json")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        search, trials = saved["search"], saved["trials"]
        search["norm"], [(t["values"]["norm"], t["status"]) for t in trials]
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}: a sweep or rerank writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no record of a sweep over norms: {error!r}") from None
    return search, trials
