"""IS and the Fréchet distance of the averaged generator during training.

Every rank makes a part of the images; the formulas are those of evonorm_plugins.metrics.
"""

import numpy as np
import torch

from biggan.data import some_images
from biggan.generator import running_statistics_layers
from biggan.sampling import sample_uint8, with_standing_statistics
from evonorm_plugins.errors import ConfigError

_SPLITS = 10  # of the Inception score
_BATCH = 64


class Scorer:
    """Scores a generator against the training images.

    Args:
        source: :class:`evonorm_plugins.data.source.Source`.
        config: ``extractor`` is a file of ``torch.jit.save`` or ``torch.export.save`` that maps
            uint8 images to features, or features and logits; or "inception" for the network that
            FID and IS are defined by.

    Raises:
        ConfigError: there is no such extractor.
    """

    def __init__(self, source, config, ranks):
        self.config, self.ranks = config, ranks
        self.extractor, self.distance, self.is_score = _extractor(config, ranks.device)
        self.n_real = min(config.score_samples, len(source.labels))
        self.real = self._moments(self._real_images(source))

    def __call__(self, generator):
        """Score a generator: a dictionary with the score and how it was measured.

        Every rank calls this and gets the same.
        """
        from evonorm_plugins.metrics.fid import frechet_distance

        config = self.config
        passes = config.standing_statistics if running_statistics_layers(generator) else 0
        # Together, since such statistics may be shared by all ranks.
        generator = with_standing_statistics(generator, passes, batch_size=_BATCH, seed=config.seed)
        logits = []
        numbers = range(config.score_samples)[self.ranks.rank :: self.ranks.size]
        images = sample_uint8(
            generator, len(numbers), seed=config.seed, batch_size=_BATCH, indices=numbers
        )
        fake = self._moments(images, logits)
        score = {
            self.distance: frechet_distance(
                *(self.real.mean.cpu(), self.real.covariance().cpu()),
                *(fake.mean.cpu(), fake.covariance().cpu()),
            )
        }
        if logits:
            score[self.is_score] = self._inception_score(torch.cat(logits))
        return {
            **score,
            "n_fake": config.score_samples,
            "n_real": self.n_real,
            "weights": "averaged (EMA)",
            "batch statistics": f"standing, {passes} forward passes" if passes else "none",
            "truncation": None,
            "seed": config.seed,
            "extractor": self.extractor.describe(),
        }

    def _real_images(self, source):
        some = np.linspace(0, len(source.labels) - 1, self.n_real).astype(int)
        own = some[self.ranks.rank :: self.ranks.size]
        for images in some_images(source, self.config, own, _BATCH):
            yield images.expand(-1, 3, -1, -1)

    def _moments(self, batches, logits=None):
        """Moments of all ranks' features; logits of this rank's images are added to a list."""
        from evonorm_plugins.metrics.moments import Moments

        moments = None
        for images in batches:
            features, scores = self.extractor(images)
            moments = moments or Moments(features.shape[1], features.device)
            moments.update(features)
            if logits is not None and scores is not None:
                logits.append(scores.cpu())
        if self.ranks.size == 1:
            return moments
        n = torch.tensor([float(moments.n)], dtype=torch.float64)
        own = torch.cat([n, moments.mean.cpu(), moments.deviations.flatten().cpu()])
        joined, size = None, len(moments.mean)
        for part in self.ranks.gather(own):
            other = Moments(size)
            other.n = int(part[0])
            other.mean, other.deviations = part[1 : size + 1], part[size + 1 :].view(size, size)
            if joined is None:
                joined = other
            else:
                joined.merge(other)
        return joined

    def _inception_score(self, logits):
        from evonorm_plugins.metrics.inception_score import inception_score

        # Ranks may have one image more or less; rows of NaN make them equal.
        longest = -(-self.config.score_samples // self.ranks.size)
        padded = torch.full((longest, logits.shape[1]), float("nan"))
        padded[: len(logits)] = logits
        together = torch.stack(self.ranks.gather(padded), 1).flatten(0, 1)
        return inception_score(together[: self.config.score_samples], _SPLITS)[0]


def _extractor(config, device):
    """The extractor, and the names of its two scores; only the network of FID gives "fid"."""
    try:
        from evonorm_plugins.errors import InputError
        from evonorm_plugins.metrics.extractor import CustomExtractor
        from evonorm_plugins.metrics.inception import InceptionExtractor
        from evonorm_plugins.metrics.weights import find_inception_weights
    except ImportError as error:
        raise ConfigError(
            f"extractor={config.extractor} needs the metrics ({error}): "
            'pip install "evonorm-plugins[gan]"'
        ) from None
    if config.score_samples < _SPLITS:
        raise ConfigError(f"score_samples={config.score_samples} must be at least {_SPLITS}")
    try:
        if config.extractor == "inception":
            extractor = InceptionExtractor(*find_inception_weights(download=False)).to(device)
        else:
            extractor = CustomExtractor(config.extractor, device)
    except InputError as error:
        raise ConfigError(f"extractor={config.extractor}: {error}") from None
    if extractor.is_reference:
        return extractor, "fid", "inception_score"
    return extractor, "frechet_distance", "class_score"
