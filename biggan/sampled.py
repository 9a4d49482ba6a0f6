"""Images of a BigGAN checkpoint, sampled while they are scored."""

from pathlib import Path

from evonorm_plugins.errors import InputError
from evonorm_plugins.layers import moving_statistics_of

STANDING_STATISTICS = 100  # forward passes, as ``python -m biggan.sample`` takes by default


class CheckpointSource:
    """``n`` images of a generator, rounded to uint8 as if they had been saved.

    Image i depends on the seed and on i, so that it is the same in any number of processes, up to
    a level where the sums of another batch size round differently.

    Args:
        path: checkpoint of :mod:`biggan`.
        n: number of images.
        seed: of latents and classes.
        ema: averaged weights, or those that were trained.
        truncation, classes: see :func:`biggan.sample.sample_uint8`; classes None are drawn
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
        from biggan.sample import load_generator

        self.path, self.n, self.seed = Path(path), n, seed
        self.ema, self.truncation, self.classes = ema, truncation, classes
        try:
            self.generator, self.config = load_generator(path, ema=ema, device=str(device))
        except ValueError as error:  # biggan's CheckpointError among them
            raise InputError(str(error)) from None
        self._has_statistics = any(map(moving_statistics_of, self.generator.modules()))
        passes = STANDING_STATISTICS if standing_statistics is None else standing_statistics
        self._passes = passes if self._has_statistics else 0
        next(self._sample(range(min(n, 1)), 1), None)  # finds what is wrong with the options

    def __len__(self):
        return self.n

    @property
    def mode(self):
        """Which batch statistics the generator's norms use."""
        if not self._has_statistics:
            return "no batch statistics"
        if self._passes:
            return f"standing statistics over {self._passes} passes"
        return "moving statistics"

    def describe(self):
        return {
            "checkpoint": str(self.path),
            "step": getattr(self.generator, "step", None),
            "norm": getattr(self.config, "norm", None),
            "resolution_px": getattr(self.config, "resolution", None),
        }

    def batches(self, size, *, process=0, processes=1, workers=0, pin=False):
        """Yield ``(indices, images)``, images uint8 (B, 3, H, W)."""
        starts = range(process * size, self.n, processes * size)
        groups = [list(range(k, min(k + size, self.n))) for k in starts]
        samples = self._sample([i for group in groups for i in group], size, self._passes)
        yield from zip(groups, samples, strict=True)

    def _sample(self, indices, size, passes=0):
        from biggan.sample import sample_uint8

        try:
            yield from sample_uint8(
                self.generator,
                self.n,
                classes=self.classes,
                truncation=self.truncation,
                seed=self.seed,
                batch_size=size,
                standing_statistics=passes,
                indices=indices,
            )
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None
