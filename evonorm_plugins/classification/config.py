"""Every option of a classifier's training: what a YAML file, an override and a checkpoint hold."""

import dataclasses

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.registry import try_norm_act
from evonorm_plugins.training.config import (
    build,
    check_below_one,
    check_shares,
    read_overrides,
    read_values,
)
from evonorm_plugins.training.precision import check_precision


@dataclasses.dataclass
class Config:
    """Options of a run; see docs/classification.md for what they mean."""

    # ---- data ----
    data: str = ""  # see docs/classification.md for what it may be
    val_data: str = ""
    # Instead of val_data: so many images of data, or "10%" of them; the same share of every class.
    holdout: int | str = 0
    reader: str = "auto"  # "memory": decoded once; "files": read in every epoch
    resolution: int | None = None  # of what the model is trained on; None: see the docs
    augment: str = "standard"  # or "none", "affine", "randaugment"
    padding: int = 4  # memory: on each side, before cropping
    flip: bool = True
    rotation: float = 18.0  # affine: at most so many degrees to either side
    zoom: float = 0.15  # affine: height and width grow or shrink by so large a share at most
    shift: float = 0.2  # affine: at most so large a share of the side
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9  # of at most 30
    crop_scale: float = 0.08  # files: smallest share of an image's area that is cropped
    val_resolution: int | None = None  # of what is validated on
    val_resize: int | None = None  # files: short edge before the crop in the middle
    max_train_images: int | None = None  # a fixed random choice
    max_val_images: int | None = None
    workers: int = 4  # files: processes of a rank that read images
    prefetch: int = 4  # files: batches that each of them reads ahead
    max_corrupt: int = 0  # files: images that cannot be read, replaced by the next

    # ---- model ----
    model: str = "resnet50_cifar"
    width: float | None = None  # factor of all channels; None: the architecture's own
    model_options: dict = dataclasses.field(default_factory=dict)
    norm: str | None = "BN-ReLU"  # None leaves the norms of a torchvision or timm model
    cross_replica: bool = False  # statistics of batches over all ranks

    # ---- training ----
    seed: int = 0
    epochs: int = 90
    steps: int | None = None  # instead of epochs
    steps_per_epoch: int | None = None  # None: as many as use every image once
    batch_size: int = 128  # images of one forward pass: those that batch statistics are taken of
    accumulations: int = 1  # forward passes of an update
    val_batch_size: int = 256
    optimizer: str = "sgd"  # or "adam", "adamw", "rmsprop"
    lr: float = 0.1
    base_batch: int | None = None  # lr is for so many images of an update, and scales with them
    momentum: float = 0.9
    nesterov: bool = True
    beta2: float = 0.999  # Adam
    alpha: float = 0.9  # RMSProp
    optimizer_eps: float | None = None  # None: torch's
    weight_decay: float = 1e-4
    decay_all: bool = False  # also gamma, beta, v and the biases
    clip_grad: float | None = None  # largest norm of the gradients
    schedule: str = "cosine"  # or one of CHOICES["schedule"]
    warmup: float = 0.0  # epochs
    milestones: list = dataclasses.field(default_factory=list)  # multistep: epochs
    decay: float = 0.1  # multistep, exponential: factor; inverse_time: see optim.lr_factor
    decay_epochs: float = 2.4  # exponential
    power: float = 1.0  # polynomial
    label_smoothing: float = 0.0
    ema_decay: float = 0.0  # 0: no average

    # ---- machine ----
    device: str = "auto"
    precision: str = "fp32"  # or "bf16", "fp16"
    channels_last: bool = True
    compile: bool = False
    timeout_minutes: float = 10.0  # of a collective operation, before a rank is taken for dead

    # ---- output ----
    output_dir: str = "output/classifier"
    log_every: int = 20  # steps
    eval_every: int = 1  # epochs; 0: at the end alone
    checkpoint_every: int = 1  # epochs; 0: none
    progress: bool = True


CHOICES = {
    "reader": ["auto", "memory", "files"],
    "augment": ["standard", "none", "affine", "randaugment"],
    "optimizer": ["sgd", "adam", "adamw", "rmsprop"],
    "schedule": ["constant", "multistep", "cosine", "polynomial", "exponential", "inverse_time"],
    "precision": ["fp32", "bf16", "fp16"],
}
# Lowest value; the others are any number.
MINIMUM = {
    **dict.fromkeys(("batch_size", "accumulations", "val_batch_size", "prefetch", "log_every"), 1),
    **dict.fromkeys(("val_resolution", "val_resize", "max_train_images", "max_val_images"), 1),
    **dict.fromkeys(("steps", "steps_per_epoch", "base_batch", "resolution"), 1),
    **dict.fromkeys(
        ("padding", "workers", "seed", "warmup", "eval_every", "max_corrupt", "holdout"), 0
    ),
    **dict.fromkeys(("momentum", "beta2", "alpha", "weight_decay", "label_smoothing"), 0),
    **dict.fromkeys(("ema_decay", "checkpoint_every", "epochs", "power"), 0),
    **dict.fromkeys(("randaugment_ops", "randaugment_magnitude"), 0),
    **dict.fromkeys(("rotation", "zoom", "shift"), 0),
    **dict.fromkeys(("lr", "width", "optimizer_eps", "clip_grad", "crop_scale", "decay"), 1e-12),
    **dict.fromkeys(("timeout_minutes", "decay_epochs"), 0.01),
}
# Keys that fix the weights' shapes or meaning: a run goes on only with the same.
MODEL_KEYS = ["model", "width", "model_options", "norm"]


def load_config(path, overrides=()):
    """Read a YAML file and ``key=value`` strings, checked.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    return from_dict(read_values(path, held_out(overrides), "classification"))


def held_out(overrides):
    """``key=value`` strings; with ``holdout=10%`` the file's ``val_data`` is not asked for.

    Images of ``data`` are to decide then, not those; so it is with a number.
    """
    values = read_overrides(overrides)
    if values.get("holdout") and "val_data" not in values:
        return [*overrides, "val_data="]
    return list(overrides)


def from_dict(values):
    """A checked :class:`Config` of a plain dictionary. Raises :class:`ConfigError`."""
    config = build(Config, values, CHOICES, MINIMUM)
    check_below_one(config, ("momentum", "beta2", "alpha", "label_smoothing", "ema_decay", "zoom"))
    check_shares(config, ("crop_scale", "shift"))
    if config.randaugment_magnitude > 30:
        raise ConfigError(f"randaugment_magnitude={config.randaugment_magnitude} is at most 30")
    if not config.epochs and config.steps is None:
        raise ConfigError("epochs=0 trains nothing; give epochs or steps")
    if not config.epochs and config.schedule == "inverse_time":
        raise ConfigError("schedule=inverse_time divides decay by epochs: epochs=0 is not possible")
    if config.nesterov and config.optimizer == "sgd" and not config.momentum:
        raise ConfigError("nesterov=true needs momentum; give nesterov=false with momentum=0")
    if config.schedule == "multistep" and config.milestones != sorted(set(config.milestones)):
        raise ConfigError(f"milestones={config.milestones} must be epochs in rising order")
    check_precision(config.precision, config.device)
    if not all(isinstance(key, str) for key in config.model_options):
        raise ConfigError(f"model_options={config.model_options}: the name of an option is text")
    if config.holdout and config.val_data:
        raise ConfigError(
            f"holdout={config.holdout} is instead of val_data={config.val_data}: give one of them"
        )
    if config.norm is not None:
        _check_norm(config.norm)
    return config


def _check_norm(name):
    try:
        try_norm_act(name, device="meta")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"norm={name!r}: {error}") from None
