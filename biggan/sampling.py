"""Images from a generator: what the command line, the grids of training and the scores share."""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from biggan import checkpoint
from biggan.config import Config, from_dict
from biggan.generator import Generator, running_statistics_layers
from biggan.latents import draw_classes, draw_latents
from biggan.spectral import power_iteration
from evonorm_plugins.errors import CheckpointError, ConfigError, first
from evonorm_plugins.files import replacing

if TYPE_CHECKING:
    from PIL import Image

STANDING_STATISTICS = 100  # forward passes, where a generator has batch statistics


def load_generator(
    path: str | os.PathLike, *, ema: bool = True, device: str | torch.device = "cpu"
) -> tuple[Generator, Config]:
    """The generator of a checkpoint, in eval mode, and its config.

    Args:
        path: ``checkpoint.pt`` or ``best.pt`` of a run.
        ema: True for the average of the weights, False for the weights as they were trained, which
            ``best.pt`` does not hold.

    Returns:
        ``(generator, config)``; ``generator.classes`` are the names of the classes, and
        ``generator.step`` the step of training.

    Raises:
        CheckpointError: the file cannot be read or does not hold it.
    """
    state = checkpoint.load(path)
    key = "ema" if ema else "generator"
    if key not in state:
        raise CheckpointError(
            f"{path} holds the averaged generator alone (ema=True); the weights as they were "
            "trained are in checkpoint.pt"
        )
    try:
        config = from_dict(state["config"])
        generator = Generator(config)
        generator.load_state_dict(state[key])
    except (ConfigError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this package: {reason}") from None
    broken = [name for name, t in generator.state_dict().items() if not torch.isfinite(t).all()]
    if broken:
        raise CheckpointError(
            f"{path} holds weights that are NaN or infinite: {first(broken, 1)}; its images would "
            "be worth nothing"
        )
    if ema:
        _find_singular_vectors(generator)
    generator.classes, generator.step = state["classes"], state["step"]
    return generator.to(device).eval(), config


def averaged(generator: Generator) -> Generator:
    """A copy of a training's averaged generator, as :func:`load_generator` loads it."""
    generator = copy.deepcopy(generator)
    _find_singular_vectors(generator)
    return generator


def _find_singular_vectors(generator: Generator) -> None:
    # The averaged weights are no step of training: the vectors beside them are another's.
    power_iteration(generator, 20)


def sample_uint8(
    generator: Generator,
    n: int,
    *,
    classes: Sequence[int] | None = None,
    truncation: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    standing_statistics: int = 0,
    indices: Iterable[int] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield ``n`` images as uint8 ``(B, 3, H, W)``, on the CPU.

    Image i depends on the seed, on i and on the class alone, not on the batch it is made in, for
    norms without batch statistics; for the others too, once ``standing_statistics`` are taken.

    Args:
        n: number of images.
        classes: integers, used in turn; None: drawn uniformly with the seed.
        truncation: see :func:`biggan.latents.draw_latents`.
        standing_statistics: forward passes over which norms with batch statistics average them
            before, in a copy of the generator; 0 keeps the moving ones of training.
        indices: the numbers of the samples, in place of ``range(n)``.

    Raises:
        ConfigError: a class that the generator does not have, or a value out of range.
    """
    _check(generator, n, classes, batch_size, standing_statistics)
    numbers = range(n) if indices is None else list(indices)
    if standing_statistics:
        generator = with_standing_statistics(
            generator, standing_statistics, batch_size=batch_size, seed=seed, truncation=truncation
        )
    config = generator.config
    for start in range(0, len(numbers), batch_size):
        part = numbers[start : start + batch_size]
        z = draw_latents(part, seed, config.z_size, truncation)
        yield to_uint8(generate(generator, z, classes_of(part, seed, config.num_classes, classes)))


def classes_of(
    indices: Sequence[int], seed: int, num_classes: int, classes: Sequence[int] | None = None
) -> torch.Tensor:
    """The classes ``(len(indices),)`` that :func:`sample_uint8` gives to these samples."""
    if classes is None:
        return draw_classes(indices, seed, num_classes)
    return torch.tensor([int(classes[i % len(classes)]) for i in indices], dtype=torch.long)


@torch.no_grad()
def generate(generator: Generator, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] of latents and classes (or class embeddings), in eval mode."""
    device = next(generator.parameters()).device
    training = generator.training
    generator.eval()
    try:
        return generator(z.to(device), y.to(device))
    finally:
        generator.train(training)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` in [-1, 1] to uint8 ``(N, 3, H, W)`` on the CPU, rounded."""
    images = (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return images.expand(-1, 3, -1, -1).contiguous()


@torch.no_grad()
def with_standing_statistics(
    generator: Generator,
    passes: int,
    *,
    batch_size: int,
    seed: int = 0,
    truncation: float | None = None,
) -> Generator:
    """A copy of the generator whose batch statistics are the mean of those of ``passes`` batches.

    Source: Brock, Donahue, Simonyan (arXiv 1809.11096), Appendix C.1. A generator without batch
    statistics is returned as it is. Where processes form a group, all of them must call this.
    """
    if not running_statistics_layers(generator):
        return generator
    training, generator = generator.training, copy.deepcopy(generator)
    layers, config = running_statistics_layers(generator), generator.config
    momenta = [layer.momentum for layer in layers]
    device = next(generator.parameters()).device
    generator.train()
    for k in range(passes):
        for layer in layers:
            layer.momentum = 1 / (k + 1)  # the mean so far
        # Numbers below 0 are of no sample that is asked for.
        part = range(-1 - k * batch_size, -1 - (k + 1) * batch_size, -1)
        z = draw_latents(part, seed, config.z_size, truncation)
        y = draw_classes(part, seed, config.num_classes)
        generator(z.to(device), y.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return generator.train(training)


def interpolate_uint8(
    generator: Generator,
    rows: int,
    columns: int,
    *,
    kind: str = "z",
    classes: Sequence[int] | None = None,
    truncation: float | None = None,
    seed: int = 0,
) -> Iterator[torch.Tensor]:
    """Yield for each row the images uint8 ``(columns, 3, H, W)`` between two samples.

    Args:
        kind: what changes along a row: "z" the latent, "class" the class embedding, "both".
        classes: integers, used in turn: one for each row, two with "class" and "both".
    """
    if kind not in ("z", "class", "both"):
        raise ConfigError(f"interpolation {kind!r} is not one of 'z', 'class', 'both'")
    if columns < 2:
        raise ConfigError(f"an interpolation needs at least 2 columns, got {columns}")
    config = generator.config
    _check(generator, rows, classes, 1, 0)
    share = torch.linspace(0, 1, columns)[:, None]
    for row in range(rows):
        ends = [2 * row, 2 * row + 1]
        z = draw_latents(ends, seed, config.z_size, truncation)
        y = classes_of(ends, seed, config.num_classes, classes)
        if kind == "z":
            y = classes_of([row, row], seed, config.num_classes, classes)
        else:
            y = y if kind == "both" or classes is not None else _distinct(y, config.num_classes)
        z = z[:1].expand(2, -1) if kind == "class" else z
        with torch.no_grad():
            e = generator.embed(y.to(next(generator.parameters()).device)).float().cpu()
        yield to_uint8(generate(generator, z[:1].lerp(z[1:], share), e[:1].lerp(e[1:], share)))


def _distinct(y: torch.Tensor, num_classes: int) -> torch.Tensor:
    return y if y[0] != y[1] else torch.stack([y[0], (y[0] + 1) % num_classes])


def grid(images: torch.Tensor, columns: int) -> torch.Tensor:
    """Images uint8 ``(N, 3, H, W)`` beside each other: ``(3, rows * H, columns * W)``."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = images.new_zeros(rows * columns, c, h, w)
    sheet[:n] = images
    return sheet.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, -1)


def write_png(image: torch.Tensor, path: str | os.PathLike) -> None:
    """Write uint8 ``(3, H, W)``, whole or not at all."""
    with replacing(path) as partial:
        to_picture(image).save(partial, "PNG")


def to_picture(image: torch.Tensor) -> "Image.Image":
    """A PIL image of uint8 ``(3, H, W)``."""
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _check(
    generator: Generator,
    n: int,
    classes: Sequence[int] | None,
    batch_size: int,
    standing_statistics: int,
) -> None:
    for name, value, lowest in (
        ("n", n, 1),
        ("batch_size", batch_size, 1),
        ("standing_statistics", standing_statistics, 0),
    ):
        if value < lowest:
            raise ConfigError(f"{name}={value} must be at least {lowest}")
    count = generator.config.num_classes
    if classes is not None and not len(classes):
        raise ConfigError("classes is empty; give None to draw them")
    for c in () if classes is None else classes:
        if not 0 <= int(c) < count:
            raise ConfigError(f"class {int(c)} does not exist: the generator has 0 to {count - 1}")
