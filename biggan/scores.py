"""IS and the Fréchet distance of the averaged generator during training.

The generator, its images, the pass and the formulas are those of ``evonorm eval gan`` with the
checkpoint that is saved; every rank makes a part of the images.
"""

import os

from biggan.data import TrainingImages
from biggan.generated import GeneratedImages
from biggan.generator import running_statistics_layers
from biggan.sampling import averaged, with_standing_statistics
from evonorm_plugins.errors import ConfigError, DataError, InputError, RunError

_SPLITS = 10  # of the Inception score
_BATCH = 64
_INCEPTION = "inception", "inception-v3-compat"  # the second is torch-fidelity's name of it


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


def check_extractor(extractor):
    """Raise ConfigError for an ``extractor`` that is not there, before images are looked at."""
    if extractor in _INCEPTION:
        inception_weights()
        return
    _need_metrics(extractor)
    from evonorm_plugins.metrics import registered

    try:
        registered.check_extractor(extractor)
        if not os.path.isfile(extractor):
            registered.find_extractor_weights(extractor, notify=lambda _: None)
    except InputError as error:
        raise ConfigError(f"extractor={extractor}: {error}") from None


class Scorer:
    """Scores a generator against the training images.

    Args:
        source: :class:`evonorm_plugins.data.source.Source`.
        config: ``extractor`` is a file of ``torch.jit.save`` or ``torch.export.save`` that maps
            uint8 images to features, or features and logits; or the name of one that torch-fidelity
            has; or "inception" for the network that FID and IS are defined by.

    Attributes:
        warnings: about too few images.

    Raises:
        ConfigError: there is no such extractor, or it does not take the images, or there are too
            few of them.
    """

    warnings: tuple = ()

    def __init__(self, source, config, ranks):
        if config.score_samples < _SPLITS:
            raise ConfigError(f"score_samples={config.score_samples} must be at least {_SPLITS}")
        self.config, self.ranks = config, ranks
        self.extractor, self.distance, self.is_score = _extractor(config, ranks.device)
        from evonorm_plugins.metrics.gan import Options, real_statistics
        from evonorm_plugins.metrics.protocol import check_counts

        self.how = {"batch_size": _BATCH, "device": ranks.device, "quiet": True}
        images = TrainingImages(source, config, config.score_samples)
        counts = {"generated": config.score_samples, "real": len(images)}
        try:
            Options(metrics=("fid",)).check(*counts.values())
            self.warnings = [f"scores: {text}" for text in check_counts(counts, strict=False)]
            self.real, _ = real_statistics(images, self.extractor, features=False, **self.how)
        except DataError:  # of the images, which are named
            raise
        except InputError as error:
            raise ConfigError(f"extractor={config.extractor}: {error}") from None
        # A rank without images has not seen what the extractor gives.
        has_logits = any(ranks.gather_objects(self.extractor.has_logits))
        self.options = Options(metrics=("is", "fid") if has_logits else ("fid",), splits=_SPLITS)

    def __call__(self, generator):
        """Score a generator of averaged weights: a dictionary with the score and how it was made.

        Every rank calls this and gets the same.

        Raises:
            RunError: the score of these images cannot be computed.
        """
        from evonorm_plugins.metrics.gan import score
        from evonorm_plugins.metrics.inception import full_float32
        from evonorm_plugins.metrics.protocol import labelled

        config, label = self.config, self.extractor.label
        passes = config.standing_statistics if running_statistics_layers(generator) else 0
        with full_float32():
            generator = averaged(generator)
            # Together, since such statistics may be shared by all ranks.
            generator = with_standing_statistics(
                generator, passes, batch_size=_BATCH, seed=config.seed
            )
        images = GeneratedImages(generator, config.score_samples, seed=config.seed)
        scored = score(images, self.real, self.extractor, self.options, **self.how)
        scores, failed = self.ranks.gather_objects((scored.scores, scored.failed))[0]
        if failed:
            raise RunError(f"scores cannot be computed: {'; '.join(failed.values())}")
        found = {self.distance: scores[labelled("fid", label)]}
        if "is" in self.options.metrics:
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


def _need_metrics(extractor):
    try:
        import evonorm_plugins.metrics.registered  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'extractor={extractor} needs the metrics ({error}): pip install "evonorm-plugins[gan]"'
        ) from None


def _extractor(config, device):
    """The extractor, and the names of its two scores; only the network of FID gives "fid"."""
    _need_metrics(config.extractor)
    from evonorm_plugins.metrics.inception import InceptionExtractor
    from evonorm_plugins.metrics.registered import open_extractor

    try:
        if config.extractor in _INCEPTION:
            extractor = InceptionExtractor(*inception_weights()).to(device)
        else:
            extractor = open_extractor(config.extractor, device)
    except ConfigError:  # which names the option
        raise
    except InputError as error:
        raise ConfigError(f"extractor={config.extractor}: {error}") from None
    if extractor.is_reference:
        return extractor, "fid", "inception_score"
    return extractor, "frechet_distance", "class_score"
