"""The proxy task: what a candidate layer is trained on, quickly, to be compared with others.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Section 4.2: small architectures, the anchors, on crops of CIFAR-10.
"""

import contextlib
import dataclasses
import functools

import torch

from evonorm_plugins.classification import config as classification
from evonorm_plugins.classification.data import open_data
from evonorm_plugins.classification.models import build_model
from evonorm_plugins.classification.trainer import Trainer
from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.training.config import build, check_choices, check_minimum
from evonorm_plugins.training.ranks import Ranks
from evonorm_plugins.training.seeds import random_state, set_random_state

# Search space -> steps and schedule of a whole training (Section 4.2).
TRAINING = {"B": (2000, "constant"), "S": (5000, "cosine")}
# The cheapest first: what is not stable shows within one or two steps of gradient ascent.
FILTERS = ("trial", "stability", "quality")


@dataclasses.dataclass
class Task:
    """Options of the evaluation of one candidate; the defaults are the paper's.

    Plain values, which can be sent to other processes. :func:`from_dict` gives a checked one.
    """

    # ---- data: keys of the classification config, see docs/classification.md ----
    data: str = ""
    val_data: str = ""
    holdout: int = 5000  # where there is no val_data: images of data to validate on
    resolution: int = 24  # of the crops that are trained on
    val_resolution: int | None = None  # of what is validated on; None: the images' own
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

    # ---- rejection: see evonorm_plugins.search.rejection ----
    filters: list[str] = dataclasses.field(default_factory=lambda: list(FILTERS))  # in this order
    quality_steps: int = 100
    quality_accuracy: float = 0.2  # lowest share of right answers that passes
    stability_anchor: str = "resnet50_cifar"
    stability_batch: int = 16  # images
    stability_steps: int = 100
    stability_lr: float = 0.1
    stability_norm: float = 1e8  # highest norm of the gradient that passes

    device: str = "auto"

    @property
    def training_steps(self):
        """Steps of a whole training."""
        return TRAINING[self.space][0] if self.steps is None else self.steps


_SAME_IN_TRAINING = ("lr", "momentum", "weight_decay", "clip_grad", "device")
# The classification config checks the keys that it has.
CHOICES = {"space": list(TRAINING), "schedule": [None, "constant", "cosine"]}
MINIMUM = {
    **dict.fromkeys(("groups", "quality_steps", "stability_batch"), 1),
    **dict.fromkeys(("stability_steps", "quality_accuracy"), 0),
    **dict.fromkeys(("eps", "stability_lr", "stability_norm"), 1e-12),
}


def from_dict(values, cls=Task):
    """A checked :class:`Task` of a plain dictionary.

    Args:
        cls: :class:`Task`, or a dataclass made from it, with more options.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    task = build(cls, values)
    check_choices(task, CHOICES)
    check_minimum(task, MINIMUM)
    if not task.data:
        raise ConfigError(f"data={task.data!r}: give the images to train on, data=PATH")
    if not (task.val_data or task.holdout):
        raise ConfigError("holdout=0 needs val_data: there is nothing to validate on")
    _check_names("filters", task.filters)
    _check_names("anchors", task.anchors)
    for name in task.filters:
        if name not in FILTERS:
            raise ConfigError(f"filters={task.filters}: {name!r} is not one of {list(FILTERS)}")
    if not task.anchors:
        raise ConfigError("anchors=[]: give one model at least")
    for name in task.anchors:
        _check_model(task, "anchors", name)
    _check_model(task, "stability_anchor", task.stability_anchor)
    _check_rejection(task)
    return task


def _check_names(key, names):
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{key}={names}: {name} is there twice")


def _check_model(task, key, name):
    config = training_config(task, name, "BN-ReLU")
    options = {} if config.width is None else {"width": config.width}
    try:
        with torch.random.fork_rng(devices=[]):
            build_model(name, 10, config.norm, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_rejection(task):
    if task.training_steps < task.quality_steps and "quality" in task.filters:
        raise ConfigError(
            f"quality_steps={task.quality_steps} are more than the {task.training_steps} steps of "
            "a whole training: give more steps or fewer quality_steps"
        )
    if task.quality_accuracy > 1:
        raise ConfigError(f"quality_accuracy={task.quality_accuracy} is a share, at most 1")
    if task.stability_batch > task.batch_size:
        raise ConfigError(
            f"stability_batch={task.stability_batch} is more than batch_size={task.batch_size}"
        )


def to_dict(task):
    """Plain values, for YAML and stores."""
    return dataclasses.asdict(task)


def training_config(task, model, norm):
    """What a network is trained with: a :class:`evonorm_plugins.classification.config.Config`.

    Args:
        norm: a name, or a callable as :func:`evonorm_plugins.get_norm_act` takes it.
    """
    values = {**_data_values(task), "model": model, "width": task.width}
    values |= {key: getattr(task, key) for key in _SAME_IN_TRAINING}
    values["nesterov"] = task.momentum > 0
    values["steps"] = task.training_steps
    values["schedule"] = task.schedule or TRAINING[task.space][1]
    return dataclasses.replace(classification.from_dict(values), norm=norm)


def task_data(task):
    """The task's :class:`evonorm_plugins.classification.data.Data`, read once by a process.

    Raises:
        DataError: as for :func:`evonorm_plugins.classification.data.open_data`.
    """
    return _read(tuple(_data_values(task).items()))


@functools.lru_cache(maxsize=1)
def _read(values):
    return open_data(classification.from_dict(dict(values)))


def _data_values(task):
    same = ("data", "val_data", "resolution", "val_resolution", "batch_size", "val_batch_size")
    values = {key: getattr(task, key) for key in same}
    values |= {key: getattr(task, key) for key in ("max_train_images", "max_val_images", "seed")}
    return {
        **values,
        "holdout": 0 if task.val_data else task.holdout,
        "reader": "memory",
        "padding": 0,
    }


class Training:
    """A network with a graph's layer, and its training as far as it has got.

    What is trained depends on graph, task and anchor alone, and on one thread of a CPU the weights
    are the same bit for bit, in however many parts it is trained. torch's own random numbers are
    left as they were.

    Args:
        graph: :class:`evonorm_plugins.layers.graph.graph.Graph`.
        task: checked :class:`Task`.
        anchor: name of the model.

    Raises:
        ConfigError: the model cannot be built, or there is no such device.
        DataError: see :func:`task_data`.
    """

    def __init__(self, graph, task, anchor):
        norm = functools.partial(GraphNormAct, graph=graph, groups=task.groups, eps=task.eps)
        config, self.data = training_config(task, anchor, norm), task_data(task)
        ranks = Ranks(task.device)
        self.device, self.steps = ranks.device, task.training_steps
        self.failed_at = None  # the step that was not finite
        with self._forked():
            self.trainer = Trainer(config, ranks, self.data)
            self._random = random_state(self.device)
        self._batches = iter(self.data.train.batches(0))
        self._per_epoch = len(self.data.train) // task.batch_size

    def go_on(self, until):
        """Train until ``until`` steps are done in all; returns whether all of them were finite.

        The step with a loss or a gradient that is not finite is not done, nor any after it.
        """
        with self.own_random_numbers():
            while self.failed_at is None and self.trainer.step < until:
                try:
                    self.trainer.train_step(self._batches, self.steps, self._per_epoch)
                except NonFiniteError:
                    self.failed_at = self.trainer.step + 1
        return self.failed_at is None

    def accuracy(self):
        """Share of right answers, 0 to 1, on the validation images.

        A training that failed counts as guessing, 1 / classes, whatever its last weights give.
        """
        if self.failed_at is not None:
            return 1 / len(self.data.classes)
        return self.trainer.evaluate()["val_accuracy"]

    @contextlib.contextmanager
    def own_random_numbers(self):
        """torch's random numbers are those of this training, which dropout would draw from."""
        with self._forked():
            set_random_state(self._random, self.device)
            yield
            self._random = random_state(self.device)

    def _forked(self):
        cuda = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=cuda)
