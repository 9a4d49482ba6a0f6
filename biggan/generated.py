"""Images of a generator, sampled while they are scored."""

from pathlib import Path

from biggan.generator import running_statistics_layers
from biggan.sampling import STANDING_STATISTICS, load_generator, sample_uint8
from evonorm_plugins.errors import InputError


class GeneratedImages:
    """``n`` images of a generator, rounded to uint8 as if they had been saved.

    Image i depends on the seed and on i, so that it is the same in any number of processes, up to
    a level where the sums of another batch size round differently.

    Args:
        generator: :class:`biggan.generator.Generator`.
        n: number of images.
        options: of :func:`biggan.sampling.sample_uint8`.
    """

    def __init__(self, generator, n, **options):
        self.generator, self.n, self.options = generator, n, options

    def __len__(self):
        return self.n

    def name(self, index):
        return f"generated image {index}"

    def batches(self, size, *, process=0, processes=1, workers=0, pin=False):
        """Yield ``(indices, images)``, images uint8 (B, 3, H, W)."""
        starts = range(process * size, self.n, processes * size)
        groups = [list(range(k, min(k + size, self.n))) for k in starts]
        indices = [i for group in groups for i in group]
        samples = sample_uint8(
            self.generator, self.n, batch_size=size, indices=indices, **self.options
        )
        yield from zip(groups, samples, strict=True)


class CheckpointImages(GeneratedImages):
    """``n`` images of a checkpoint's generator.

    Args:
        path: checkpoint of :mod:`biggan`.
        n: number of images.
        seed: of latents and classes.
        ema: averaged weights, or those that were trained.
        truncation, classes: see :func:`biggan.sampling.sample_uint8`; classes None are drawn
            uniformly.
        standing_statistics: forward passes that batch statistics are averaged over; 0 keeps the
            moving ones of training, None takes 100. A generator without them needs none.

    Raises:
        InputError: the checkpoint cannot be read, or an option does not fit it.
    """

    def __init__(
        self, path, n, *, seed=0, ema=True, truncation=None, classes=None,
        standing_statistics=None, device="cpu",
    ):  # fmt: skip
        if not Path(path).is_file():
            raise InputError(f"--checkpoint: there is no file {path}")
        generator, self.config = load_generator(path, ema=ema, device=str(device))
        self.path, self.ema = Path(path), ema
        self._has_statistics = bool(running_statistics_layers(generator))
        passes = STANDING_STATISTICS if standing_statistics is None else standing_statistics
        passes = passes if self._has_statistics else 0
        super().__init__(
            generator, n, seed=seed, truncation=truncation, classes=classes,
            standing_statistics=passes,
        )  # fmt: skip
        # Finds what is wrong with the options; without the statistics, which take long.
        options = {**self.options, "standing_statistics": 0}
        next(sample_uint8(generator, min(n, 1), batch_size=1, **options))

    @property
    def mode(self):
        """Which batch statistics the generator's norms use."""
        if not self._has_statistics:
            return "no batch statistics"
        if passes := self.options["standing_statistics"]:
            return f"standing statistics over {passes} passes"
        return "moving statistics"

    def describe(self):
        return {
            "checkpoint": str(self.path),
            "step": getattr(self.generator, "step", None),
            "norm": getattr(self.config, "norm", None),
            "training_seed": getattr(self.config, "seed", None),
            "resolution_px": getattr(self.config, "resolution", None),
        }
