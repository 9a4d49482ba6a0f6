"""What a run is told, checked before any work is done."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.training.config import (
    build,
    check_choices,
    check_minimum,
    read_overrides,
    read_values,
)

CHOICES = {"schedule": ("multistep", "cosine")}
MINIMUM = {
    **{"batch": 1, "iterations": 1, "max_size": 1, "log_every": 1, "warmup": 0, "seed": 0},
    **{"eval_every": 0, "checkpoint_every": 0, "workers": 0, "lr": 0, "clip_gradients": 0},
    **{"weight_decay": 0, "norm_weight_decay": 0, "momentum": 0, "warmup_factor": 0},
}


@dataclass
class Options:
    """Options of :class:`~evonorm_plugins.integrations.torchvision.run.Run`.

    Attributes:
        train_json, train_images, val_json, val_images: annotations in COCO's format and folders of
            their images.
        output_dir: folder of all that is written.
        model: one of ``list_detectors()``.
        norm: name of a norm-activation layer, or "none" for torchvision's own norms.
        model_options: arguments of torchvision's model, such as ``box_detections_per_img``.
        weights: a checkpoint to start from, or to evaluate.
        min_size, max_size: images are resized so that the shorter side has ``min_size`` pixels (in
            training one of them at random, in evaluation the last) and the longer at most
            ``max_size``.
        flip: mirror half of the training images.
        batch: images per iteration.
        iterations: of training.
        lr: learning rate after the warm-up; None: 0.02 for 16 images, in proportion to the batch.
        momentum, weight_decay, norm_weight_decay: of SGD; the last is that of norms.
        warmup, warmup_factor: iterations in which the rate rises linearly from ``lr`` times the
            factor.
        schedule: "multistep", a tenth of the rate from each of ``steps`` on, or "cosine", to 0.
        steps: iterations; None: after 3/4 and 11/12 of all.
        clip_gradients: limit of the norm of all gradients together; 0: none.
        eval_every, checkpoint_every, log_every: iterations between; 0: at the end alone.
        seed: of weights, order, flips and sampling.
        workers: processes that read images.
        device: "cuda", "cuda:1", "cpu"; "auto": cuda where there is one.
        allow_empty_categories: train although some categories have no instances.
    """

    train_json: str | None = None
    train_images: str | None = None
    val_json: str | None = None
    val_images: str | None = None
    output_dir: str = "output/torchvision"
    model: str = "maskrcnn_resnet50_fpn"
    norm: str = "EvoNormS0"
    model_options: dict = field(default_factory=dict)
    weights: str | None = None
    min_size: list = field(default_factory=lambda: [800])
    max_size: int = 1333
    flip: bool = True
    batch: int = 2
    iterations: int = 90_000
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0
    warmup: int = 1000
    warmup_factor: float = 0.001
    schedule: str = "multistep"
    steps: list | None = None
    clip_gradients: float = 5.0
    eval_every: int = 0
    checkpoint_every: int = 1000
    log_every: int = 20
    seed: int = 0
    workers: int = 2
    device: str = "auto"
    allow_empty_categories: bool = False

    def check(self) -> None:
        """Raises ConfigError for the first option out of range."""
        check_choices(self, CHOICES)
        check_minimum(self, MINIMUM)
        if self.lr == 0:
            raise ConfigError("lr=0 must be above 0")
        for name in ("momentum", "warmup_factor"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if not self.min_size or min(self.min_size) < 1 or max(self.min_size) > self.max_size:
            raise ConfigError(
                f"min_size={self.min_size} must be from 1 to max_size={self.max_size}"
            )
        if self.steps is not None and self.schedule != "multistep":
            raise ConfigError(f"steps belong to schedule=multistep, not to {self.schedule}")
        if sorted(set(self.steps or ())) != list(self.steps or ()) or min(self.steps or [1]) < 1:
            raise ConfigError(f"steps={self.steps} must rise, from 1 on")

    def base_rate(self) -> float:
        """The rate after the warm-up."""
        return 0.02 * self.batch / 16 if self.lr is None else self.lr

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        if self.schedule == "cosine":
            factor = (1 + math.cos(math.pi * iteration / self.iterations)) / 2
        else:
            steps = self.steps
            if steps is None:
                steps = [self.iterations * 3 // 4, self.iterations * 11 // 12]
            factor = 0.1 ** sum(iteration >= step for step in steps)
        if iteration < self.warmup:
            done = iteration / self.warmup
            factor *= self.warmup_factor * (1 - done) + done
        return self.base_rate() * factor

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_options(
    path: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
    given: dict[str, Any] | None = None,
) -> Options:
    """The options of a YAML file and of a command line, checked.

    Args:
        path: of the file, or None.
        overrides: ``key=value`` strings, over the file's. What is no option is one of
            torchvision's model, as if it stood under ``model_options``.
        given: options by name, over both.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    if path and not os.path.isfile(path):
        raise ConfigError(f"there is no config file {path}")
    values = read_values(path) if path else {}
    names = {f.name for f in dataclasses.fields(Options)}
    for_model = values.get("model_options") or {}
    for key, value in read_overrides(overrides).items():
        if key in names:
            values[key] = value
        elif isinstance(for_model, dict):
            for_model = values["model_options"] = {**for_model, key: value}
    options = build(Options, {**values, **(given or {})})
    options.check()
    return options
