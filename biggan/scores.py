"""IS and the Fréchet distance of the averaged generator during training.

The pass and the formulas are those of evonorm_plugins.metrics; every rank makes a part of the
images.
"""

import numpy as np

from biggan.data import some_images
from biggan.generated import GeneratedImages
from biggan.generator import running_statistics_layers
from biggan.sampling import with_standing_statistics
from evonorm_plugins.errors import ConfigError, DataError, InputError

_SPLITS = 10  # of the Inception score
_BATCH = 64


def inception_weights():
    """Path and SHA-256 of the weights that ``extractor=inception`` takes.

    Raises:
        ConfigError: they are not on this machine; says how to get them, or to do without.
    """
    from evonorm_plugins.metrics.weights import find_inception_weights

    try:
        return find_inception_weights(download=False)
    except InputError as error:
        raise ConfigError(
            f"extractor=inception: {error}; or train without scores by extractor=null: best.pt is "
            "then the newest generator, not the best"
        ) from None


class Scorer:
    """Scores a generator against the training images.

    Args:
        source: :class:`evonorm_plugins.data.source.Source`.
        config: ``extractor`` is a file of ``torch.jit.save`` or ``torch.export.save`` that maps
            uint8 images to features, or features and logits; or "inception" for the network that
            FID and IS are defined by.

    Raises:
        ConfigError: there is no such extractor, or it does not take the images.
    """

    def __init__(self, source, config, ranks):
        from evonorm_plugins.metrics.gan import real_statistics

        if config.score_samples < _SPLITS:
            raise ConfigError(f"score_samples={config.score_samples} must be at least {_SPLITS}")
        self.config, self.ranks = config, ranks
        self.extractor, self.distance, self.is_score = _extractor(config, ranks.device)
        self.how = {"batch_size": _BATCH, "device": ranks.device, "quiet": True}
        images = _TrainingImages(source, config, min(config.score_samples, len(source)))
        try:
            self.real, _ = real_statistics(images, self.extractor, features=False, **self.how)
        except DataError:  # of the images, which are named
            raise
        except InputError as error:
            raise ConfigError(f"extractor={config.extractor}: {error}") from None
        # A rank without images has not seen what the extractor gives.
        self.has_logits = any(ranks.gather_objects(self.extractor.has_logits))

    def __call__(self, generator):
        """Score a generator: a dictionary with the score and how it was measured.

        Every rank calls this and gets the same.
        """
        from evonorm_plugins.metrics.gan import Options, score
        from evonorm_plugins.metrics.protocol import labelled

        config, label = self.config, self.extractor.label
        passes = config.standing_statistics if running_statistics_layers(generator) else 0
        # Together, since such statistics may be shared by all ranks.
        generator = with_standing_statistics(generator, passes, batch_size=_BATCH, seed=config.seed)
        images = GeneratedImages(generator, config.score_samples, seed=config.seed)
        metrics = ("is", "fid") if self.has_logits else ("fid",)
        options = Options(metrics=metrics, splits=_SPLITS)
        scores, _, _ = score(images, self.real, self.extractor, options, **self.how)
        scores = self.ranks.gather_objects(scores)[0]
        found = {self.distance: scores[labelled("fid", label)]}
        if self.has_logits:
            found[self.is_score] = scores[labelled("inception_score_mean", label)]
        return {
            **found,
            "n_fake": config.score_samples,
            "n_real": self.real.n,
            "weights": "averaged (EMA)",
            "batch statistics": f"standing, {passes} forward passes" if passes else "none",
            "truncation": None,
            "seed": config.seed,
            "extractor": self.extractor.describe(),
        }


class _TrainingImages:
    """``n`` of the training images as the discriminator sees them, evenly spaced in their order."""

    def __init__(self, source, config, n):
        self.source, self.config = source, config
        self.numbers = np.linspace(0, len(source) - 1, n).astype(int)

    def __len__(self):
        return len(self.numbers)

    def batches(self, size, *, process=0, processes=1, workers=0, pin=False):
        """Yield ``(indices, images)``, images uint8 (B, 3, H, W)."""
        groups = [list(range(k, min(k + size, len(self)))) for k in range(0, len(self), size)]
        groups = groups[process::processes]
        own = self.numbers[[i for group in groups for i in group]]
        batches = some_images(self.source, self.config, own, size)
        for group, images in zip(groups, batches, strict=True):
            yield group, images.expand(-1, 3, -1, -1)


def _extractor(config, device):
    """The extractor, and the names of its two scores; only the network of FID gives "fid"."""
    try:
        from evonorm_plugins.metrics.extractor import CustomExtractor
        from evonorm_plugins.metrics.inception import InceptionExtractor
    except ImportError as error:
        raise ConfigError(
            f"extractor={config.extractor} needs the metrics ({error}): "
            'pip install "evonorm-plugins[gan]"'
        ) from None
    try:
        if config.extractor == "inception":
            extractor = InceptionExtractor(*inception_weights()).to(device)
        else:
            extractor = CustomExtractor(config.extractor, device)
    except ConfigError:  # which names the option
        raise
    except InputError as error:
        raise ConfigError(f"extractor={config.extractor}: {error}") from None
    if extractor.is_reference:
        return extractor, "fid", "inception_score"
    return extractor, "frechet_distance", "class_score"
