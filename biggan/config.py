"""Every option of a run, one flat set of keys: what a YAML file, an override and a checkpoint hold.

The defaults are those of BigGAN-deep at 128x128 (Brock, Donahue, Simonyan, arXiv 1809.11096v2,
Table 7 and Appendix C) with the norm of the first row of a config file.
"""

import dataclasses
import itertools

from biggan.architecture import CHANNEL_MULTIPLIERS
from biggan.augment import POLICIES
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.registry import get_norm_act, parse_name
from evonorm_plugins.training.config import (
    build,
    check_below_one,
    read_values,
)
from evonorm_plugins.training.precision import check_precision


@dataclasses.dataclass
class Config:
    """Options of a run; see docs/biggan.md for what they mean."""

    # ---- model ----
    resolution: int = 128
    channels: int = 128  # "ch" of the paper's tables
    channel_multipliers: list | None = None  # None: those of biggan.architecture
    depth: int = 2  # blocks of a stage
    attention: list | None = None  # sizes; None: 64, or 32 at 64, none at 32
    z_size: int = 128
    embedding_size: int = 128
    num_classes: int | None = None  # None: counted from the data
    image_channels: int = 3
    norm: str = "EvoNormS0"
    norm_eps: float = 1e-4
    spectral_eps: float = 1e-4
    cross_replica: bool = True  # statistics of batches over all ranks

    # ---- data ----
    data: str = ""  # folder, .zip, .hdf5, .tar shards with wildcards, or "digits"
    flip: bool = True
    small_images: str = "error"  # or "enlarge"
    max_corrupt: int = 100
    workers: int = 4  # processes of a rank that read images
    prefetch: int = 4  # batches that each of them reads ahead
    shuffle_shards: int = 8  # tar: shards whose images are mixed with each other

    # ---- training ----
    seed: int = 0
    steps: int = 150_000  # of the generator
    batch_size: int = 2048  # images of one update, over all ranks and accumulations
    accumulations: int = 1
    d_steps: int = 2
    g_lr: float = 5e-5
    d_lr: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.999
    adam_eps: float = 1e-6
    ema_decay: float = 0.9999
    ema_start: int = 20_000  # before this step the average is the generator itself
    augment: list[str] = dataclasses.field(default_factory=list)  # of biggan.augment.POLICIES
    orthogonal: float = 0.0  # weight of orthogonal regularisation, 1e-4 in the paper where used

    # ---- machine ----
    device: str = "auto"
    precision: str = "fp32"  # or "bf16", "fp16"
    channels_last: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    timeout_minutes: float = 10.0  # of a collective operation, before a rank is taken for dead

    # ---- output ----
    output_dir: str = "output/biggan"
    log_every: int = 10
    sample_every: int = 1000
    sample_rows: int = 8
    checkpoint_every: int = 1000
    score_every: int = 5000  # where an extractor is given
    extractor: str | None = None  # see docs/biggan.md
    score_samples: int = 50_000
    standing_statistics: int = 100  # forward passes for norms with batch statistics
    keep_best: int = 3
    collapse_factor: float = 3.0  # FID this many times the best, twice in a row, is a collapse


CHOICES = {
    "resolution": sorted(CHANNEL_MULTIPLIERS),
    "precision": ["fp32", "bf16", "fp16"],
    "small_images": ["error", "enlarge"],
    "image_channels": [1, 3],
}
# Lowest value; the others are any number.
MINIMUM = {
    **dict.fromkeys(("channels", "depth", "z_size", "embedding_size", "batch_size"), 1),
    **dict.fromkeys(("accumulations", "d_steps", "log_every", "sample_every", "sample_rows"), 1),
    **dict.fromkeys(("checkpoint_every", "score_every", "keep_best", "prefetch"), 1),
    **dict.fromkeys(("shuffle_shards", "score_samples", "steps"), 1),
    **dict.fromkeys(("workers", "max_corrupt", "ema_start", "standing_statistics", "seed"), 0),
    **dict.fromkeys(("orthogonal", "beta1", "beta2", "ema_decay"), 0),
    **dict.fromkeys(("g_lr", "d_lr", "norm_eps", "spectral_eps", "adam_eps"), 1e-12),
    **dict.fromkeys(("timeout_minutes", "collapse_factor"), 0.1),
}
# Keys that fix the weights' shapes or meaning: a run goes on only with the same.
MODEL_KEYS = [
    *("resolution", "channels", "channel_multipliers", "depth", "attention", "z_size"),
    *("embedding_size", "num_classes", "image_channels", "norm", "norm_eps", "spectral_eps"),
]


def load_config(path, overrides=()):
    """Read a YAML file and ``key=value`` strings, checked.

    Raises:
        ConfigError: names the key or value at fault and what would be right.
    """
    return from_dict(read_values(path, overrides, "gan"))


def from_dict(values):
    """A checked :class:`Config` of a plain dictionary. Raises :class:`ConfigError`."""
    config = build(Config, values, CHOICES, MINIMUM)
    _check(config)
    return config


def batch_per_rank(config, ranks):
    """Images of one forward pass of one rank. Raises :class:`ConfigError` if it is not whole."""
    parts = ranks * config.accumulations
    if config.batch_size % parts:
        lower = config.batch_size // parts * parts
        near = f"{lower} or {lower + parts}" if lower else str(parts)
        raise ConfigError(
            f"batch_size={config.batch_size} is not divisible by {ranks} ranks x "
            f"accumulations={config.accumulations}; {near} would be"
        )
    return config.batch_size // parts


def _check(config):
    if config.num_classes is not None and config.num_classes < 1:
        raise ConfigError(f"num_classes={config.num_classes} must be at least 1")
    check_below_one(config, ("beta1", "beta2", "ema_decay"))
    check_precision(config.precision, config.device)
    _check_augment(config)
    _check_architecture(config)
    try:
        if "eps" in parse_name(config.norm)[1]:
            raise ConfigError(f"eps is norm_eps={config.norm_eps:g}, no part of a name")
        get_norm_act(config.norm, 8, eps=config.norm_eps, device="meta")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"norm={config.norm!r}: {error}") from None


def _check_augment(config):
    wrong = [name for name in config.augment if name not in POLICIES]
    if wrong:
        raise ConfigError(
            f"augment={config.augment}: {wrong[0]!r} is not one of {', '.join(POLICIES)}"
        )
    if len(set(config.augment)) < len(config.augment):
        raise ConfigError(f"augment={config.augment}: one comes twice")
    if "color" in config.augment and config.image_channels == 1:
        raise ConfigError("augment: color is for images with 3 channels, image_channels is 1")


def _check_architecture(config):
    sizes = [8 * 2**k for k in range(10) if 8 * 2**k <= config.resolution]
    if config.attention is None:
        default = {32: [], 64: [32]}
        config.attention = default.get(config.resolution, [64])
    for size in config.attention:
        # The discriminator's first stage ends at half the resolution.
        if size not in sizes[:-1]:
            known = ", ".join(map(str, sizes[:-1]))
            raise ConfigError(
                f"attention={config.attention}: at resolution {config.resolution} both networks "
                f"have feature maps of {known}, not of {size}"
            )
    multipliers = config.channel_multipliers or CHANNEL_MULTIPLIERS[config.resolution]
    if len(multipliers) != len(sizes) + 1 or min(multipliers) < 1:
        raise ConfigError(
            f"channel_multipliers={list(multipliers)} must be {len(sizes) + 1} numbers of at least "
            f"1 for resolution {config.resolution}, from 4x4 to {config.resolution}"
        )
    if any(later > earlier for earlier, later in itertools.pairwise(multipliers)):
        raise ConfigError(
            f"channel_multipliers={list(multipliers)} must not grow: a block's skip connection "
            "keeps some of its channels"
        )
    narrowest = min(multipliers) * config.channels
    if any((m * config.channels) % 4 for m in multipliers):
        raise ConfigError(
            f"channels={config.channels} gives a block of {narrowest} channels; blocks have inner "
            "convolutions of a quarter, so every width must be a multiple of 4"
        )
    for size in config.attention:
        width = multipliers[sizes.index(size) + 1] * config.channels
        if width % 8:
            raise ConfigError(
                f"channels={config.channels} gives {width} channels to the attention at {size}x"
                f"{size}, which needs a multiple of 8"
            )
