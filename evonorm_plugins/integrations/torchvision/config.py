"""What a run is told, checked before any work is done."""

import dataclasses
import math
from dataclasses import dataclass, field

from evonorm_plugins.errors import ConfigError

_SCHEDULES = ("multistep", "cosine")


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
        device: "cuda", "cpu" ...; None: cuda where there is one.
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
    min_size: tuple = (800,)
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
    steps: tuple | None = None
    clip_gradients: float = 5.0
    eval_every: int = 0
    checkpoint_every: int = 1000
    log_every: int = 20
    seed: int = 0
    workers: int = 2
    device: str | None = None
    allow_empty_categories: bool = False

    def check(self):
        """Raises ConfigError for the first option out of range."""
        at_least = {"batch": 1, "iterations": 1, "max_size": 1, "log_every": 1, "warmup": 0}
        at_least |= {"eval_every": 0, "checkpoint_every": 0, "workers": 0, "seed": 0}
        at_least |= {"weight_decay": 0, "norm_weight_decay": 0, "clip_gradients": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} {value} must be at least {least}")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr {self.lr} must be above 0")
        for name in ("momentum", "warmup_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be from 0 to 1")
        if self.schedule not in _SCHEDULES:
            raise ConfigError(f"schedule {self.schedule!r} is not one of {', '.join(_SCHEDULES)}")
        if not self.min_size or min(self.min_size) < 1 or max(self.min_size) > self.max_size:
            shown = " ".join(map(str, self.min_size))
            raise ConfigError(f"min_size {shown} must be from 1 to max_size {self.max_size}")
        if self.steps is not None and self.schedule != "multistep":
            raise ConfigError(f"steps belong to the schedule multistep, not to {self.schedule}")
        if sorted(set(self.steps or ())) != list(self.steps or ()) or 0 in (self.steps or ()):
            raise ConfigError(f"steps {' '.join(map(str, self.steps))} must rise, from 1 on")

    def base_rate(self):
        """The rate after the warm-up."""
        return 0.02 * self.batch / 16 if self.lr is None else self.lr

    def rate(self, iteration):
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

    def to_dict(self):
        return dataclasses.asdict(self)
