"""Every option of a search: what candidates are trained on, what is tried next, on which workers.

A candidate is compared with others on a proxy task: small architectures, the anchors, on crops of
CIFAR-10 (Liu, Brock, Simonyan, Le, arXiv 2004.02967, Sections 4.2 and 5.1).
"""

import dataclasses
import json

import torch

from evonorm_plugins.classification import config as classification
from evonorm_plugins.classification.models import build_model
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.search.mutation import MOVES
from evonorm_plugins.training.config import (
    build,
    check_choices,
    check_minimum,
    check_shares,
    read_values,
    to_dict,
)

# Search space -> steps and schedule of a whole training (Section 5.1).
TRAINING = {"B": (2000, "constant"), "S": (5000, "cosine")}
# The cheapest first: what is not stable shows within one or two steps of gradient ascent.
FILTERS = ("trial", "stability", "quality")
# Beside them, not of the paper and cheaper; "rungs" and "top" depend on the results before.
CHEAP_FILTERS = ("propagation", "ascent", "rungs", "top")


@dataclasses.dataclass
class Task:
    """Options of the evaluation of one candidate; the paper's, unless a comment says otherwise.

    Plain values, which can be sent to other processes. :func:`task_from_dict` gives a checked one.
    """

    # ---- data: keys of the classification config, see docs/classification.md ----
    data: str = ""
    val_data: str = ""
    holdout: int | str = 5000  # where there is no val_data: images of data to validate on, or "10%"
    resolution: int = 24  # of the crops that are trained on
    val_resolution: int | None = None  # of what is validated on; None: the images' own
    flip: bool = True  # not of the paper: a random half of the images is mirrored
    batch_size: int = 128
    val_batch_size: int = 512
    max_train_images: int | None = None
    max_val_images: int | None = None

    # ---- networks ----
    anchors: list[str] = dataclasses.field(
        default_factory=lambda: ["resnet50_cifar", "mobilenetv2_cifar", "efficientnet_b0_cifar"]
    )  # the cheapest first
    width: float | None = None  # factor of all channels; None: each anchor's own
    groups: int = 32  # of w,h,c/g
    eps: float = 1e-5

    # ---- training ----
    space: str = "B"  # or "S": steps and schedule where those are None
    steps: int | None = None  # of a whole training; None: 2,000 in space B, 5,000 in S
    schedule: str | None = None  # "constant", "cosine"; None: constant in space B, cosine in S
    lr: float = 0.1
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 1e-4
    # Not of the paper: without it EvoNormB0 diverges within 25 steps, see docs/search.md.
    clip_grad: float | None = 4.0  # largest norm of the gradient of all weights together
    seed: int = 0

    # ---- rejection: see evonorm_plugins.search.filters ----
    filters: list[str] = dataclasses.field(default_factory=lambda: list(FILTERS))  # in this order
    quality_steps: int = 100
    quality_accuracy: float = 0.2  # lowest share of right answers that passes
    stability_anchor: str = "resnet50_cifar"
    stability_batch: int = 16  # images
    stability_steps: int = 100
    stability_lr: float = 0.1
    stability_norm: float = 1e8  # highest norm of the gradient that passes
    # Of the filters that are not of the paper.
    propagation_signal: float = 0.01  # lowest share of what differs between images that passes
    propagation_gradient: float = 1e-3  # lowest ratio of gradients that passes; 1 over it: highest
    ascent_steps: int = 2  # of stability, in the filter "ascent"
    rungs: list[int] = dataclasses.field(default_factory=lambda: [25, 50])  # steps of training
    rung_share: float = 0.8  # of the accuracies at a rung so far, the best, that go on
    top_share: float = 0.75  # of what passed the quality filter so far that goes on
    least_results: int = 20  # of a rung, before which all go on

    device: str = "auto"

    @property
    def training_steps(self):
        """Steps of a whole training."""
        return TRAINING[self.space][0] if self.steps is None else self.steps


@dataclasses.dataclass
class Config(Task):
    """Options of a search beside those of its task; see docs/search.md."""

    # ---- evolution: see evonorm_plugins.search.evolution ----
    random_share: float = 0.5  # of proposals; 1 is random search
    winner: str = "pareto"  # or "average", "front"
    window: int = 2500  # most recent candidates that passed, which can be parents
    tournament: float = 0.05  # share of the window
    mutations: int = 2  # of a child
    moves: list[str] = dataclasses.field(default_factory=lambda: ["node"])  # see mutation.py
    # Not of the paper, which trains equal candidates again: see evonorm_plugins.search.driver.
    same: str = "structure"  # or "function": which candidates are equal
    redraws: int = 0  # proposals drawn anew, at most, in place of one that is known

    # ---- size ----
    candidates: int | None = None  # results in all
    hours: float | None = None  # of this run; then no more are handed out

    # ---- machine ----
    workers: int | None = None  # None: as many as there is room for
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    store: str = "output/search.sqlite"


# The classification config checks the keys that it has.
TASK_CHOICES = {"space": list(TRAINING), "schedule": [None, "constant", "cosine"]}
CHOICES = {"winner": ["pareto", "average", "front"], "same": ["structure", "function"]}
# Lowest value.
TASK_MINIMUM = {
    **dict.fromkeys(("groups", "quality_steps", "stability_batch", "least_results"), 1),
    **dict.fromkeys(("stability_steps", "ascent_steps", "quality_accuracy"), 0),
    "propagation_signal": 0,
    **dict.fromkeys(("eps", "stability_lr", "stability_norm"), 1e-12),
    **dict.fromkeys(("rung_share", "top_share", "propagation_gradient"), 1e-12),
}
MINIMUM = {
    **dict.fromkeys(("window", "mutations", "candidates", "workers", "cpus_per_worker"), 1),
    **dict.fromkeys(("random_share", "gpus_per_worker", "redraws"), 0),
    **dict.fromkeys(("tournament", "hours"), 1e-12),
}
# What a resumed search may have other than before: where it runs, what it reads, when it ends.
_MAY_CHANGE = ("data", "val_data", "device", "candidates", "hours", "workers", "store")
_MAY_CHANGE += ("cpus_per_worker", "gpus_per_worker")
# Options that searches of version 1 had not: these did as the defaults say.
SINCE_2 = ("moves", "same", "redraws", "propagation_signal", "propagation_gradient")
SINCE_2 += ("ascent_steps", "rungs", "rung_share", "top_share", "least_results")


def load_config(path, overrides=()):
    """Read a YAML file and ``key=value`` strings, checked.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    return from_dict(read_values(path, overrides, "search"))


def from_dict(values):
    """A checked :class:`Config` of a plain dictionary. Raises :class:`ConfigError`."""
    config = task_from_dict(values, Config)
    check_choices(config, CHOICES)
    check_minimum(config, MINIMUM)
    check_shares(config, ("random_share", "tournament"))
    _check_names("moves", config.moves, MOVES)
    if config.candidates is None and config.hours is None:
        raise ConfigError("give candidates=NUMBER or hours=NUMBER: when the search is to end")
    return config


def task_from_dict(values, cls=Task):
    """A checked :class:`Task` of a plain dictionary.

    Args:
        cls: :class:`Task`, or a dataclass made from it, with more options.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    task = build(cls, values, TASK_CHOICES, TASK_MINIMUM)
    check_shares(task, ("quality_accuracy", "rung_share", "top_share"))
    check_shares(task, ("propagation_signal", "propagation_gradient"))
    if not task.data:
        raise ConfigError(f"data={task.data!r}: give the images to train on, data=PATH")
    if not (task.val_data or task.holdout):
        raise ConfigError("holdout=0 needs val_data: there is nothing to validate on")
    _check_names("filters", task.filters, (*FILTERS, *CHEAP_FILTERS))
    _check_names("anchors", task.anchors)
    if not task.anchors:
        raise ConfigError("anchors=[]: give one model at least")
    for name in task.anchors:
        _check_model(task, "anchors", name)
    _check_model(task, "stability_anchor", task.stability_anchor)
    _check_filters(task)
    return task


def _check_names(key, names, known=None):
    if not names and key == "moves":
        raise ConfigError(f"moves=[]: give one of {list(known)} at least")
    for name in names:
        if known is not None and name not in known:
            raise ConfigError(f"{key}={names}: {name!r} is not one of {list(known)}")
        if names.count(name) > 1:
            raise ConfigError(f"{key}={names}: {name} is there twice")


def _check_model(task, key, name):
    config = training_config(task, name, "BN-ReLU")
    options = {} if config.width is None else {"width": config.width}
    try:
        with torch.device("meta"):
            build_model(name, 10, config.norm, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_filters(task):
    place = {name: k for k, name in enumerate(task.filters)}
    for before, after in (("rungs", "quality"), ("quality", "top")):
        if before in place and after in place and place[after] < place[before]:
            raise ConfigError(f"filters={task.filters}: {before} must come before {after}")
    if "top" in place and "quality" not in place:
        raise ConfigError(f"filters={task.filters}: top needs quality before it")
    last = task.quality_steps - 1
    ladder = [0, *task.rungs, last + 1]
    if "rungs" in place and (not task.rungs or ladder != sorted(set(ladder))):
        raise ConfigError(
            f"rungs={task.rungs}: give numbers of steps, each larger than the one before, from 1 "
            f"to quality_steps - 1 = {last}"
        )
    if task.training_steps < task.quality_steps and "quality" in task.filters:
        raise ConfigError(
            f"quality_steps={task.quality_steps} are more than the {task.training_steps} steps of "
            "a whole training: give more steps or fewer quality_steps"
        )
    if task.stability_batch > task.batch_size:
        raise ConfigError(
            f"stability_batch={task.stability_batch} is more than batch_size={task.batch_size}"
        )


def check_same(config, saved, path):
    """Raise :class:`ConfigError` where a search in ``path`` was begun with other options.

    Args:
        saved: the plain dictionary that it was begun with.
    """
    now, saved = json.loads(json.dumps(to_dict(config))), {**_before(), **saved}
    changed = [k for k in now if k not in _MAY_CHANGE and saved.get(k) != now[k]]
    if changed:
        what = ", ".join(f"{k}={saved.get(k)!r} (now {now[k]!r})" for k in changed)
        raise ConfigError(f"{path} was begun with {what}: give the same, or another store")


def _before():
    return {key: value for key, value in to_dict(Config()).items() if key in SINCE_2}


# What accuracies may be compared across: the images' place, rejection, and chance.
_NOT_MEASURED = ("data", "val_data", "device", "seed", "filters", "quality_accuracy")
_NOT_MEASURED += tuple(f"stability_{key}" for key in ("anchor", "batch", "steps", "lr", "norm"))
_NOT_MEASURED += SINCE_2


def check_same_task(task, saved, baseline, path):
    """Raise :class:`ConfigError` where accuracies of a baseline and of a search mean two things.

    Args:
        task: the plain dictionary of the baseline's task.
        saved: the plain dictionary that the search was begun with.
        baseline, path: what the message calls them.
    """
    keys = [f.name for f in dataclasses.fields(Task) if f.name not in _NOT_MEASURED]
    other = [k for k in keys if k in saved and saved[k] != task.get(k)]
    if other:
        what = ", ".join(f"{k}={task.get(k)!r} (not {saved[k]!r})" for k in other)
        raise ConfigError(
            f"{baseline} was measured with {what} of {path}: measure it on the same task"
        )


_SAME_IN_TRAINING = ("lr", "momentum", "weight_decay", "clip_grad", "device")


def training_config(task, model, norm):
    """What a network is trained with: a :class:`evonorm_plugins.classification.config.Config`.

    Args:
        norm: a name, or a callable as :func:`evonorm_plugins.get_norm_act` takes it.
    """
    values = {**data_values(task), "model": model, "width": task.width}
    values |= {key: getattr(task, key) for key in _SAME_IN_TRAINING}
    values["nesterov"] = task.momentum > 0
    values["steps"] = task.training_steps
    values["schedule"] = task.schedule or TRAINING[task.space][1]
    return dataclasses.replace(classification.from_dict(values), norm=norm)


def data_values(task):
    """The keys of a classification config that say which images a task has."""
    same = ("data", "val_data", "resolution", "val_resolution", "flip", "batch_size")
    same += ("val_batch_size",)
    values = {key: getattr(task, key) for key in same}
    values |= {key: getattr(task, key) for key in ("max_train_images", "max_val_images", "seed")}
    return {
        **values,
        "holdout": 0 if task.val_data else task.holdout,
        "reader": "memory",
        "padding": 0,
    }
