"""A trained classifier as a feature extractor of generated images, in a file of its own."""

import copy
import logging

import torch
import torch.nn.functional as F
from torch import nn

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.classification.run import FORMAT
from evonorm_plugins.classification.trainer import build_classifier
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import replacing
from evonorm_plugins.training.checkpoint import loading


class ClassifierFeatures(nn.Module):
    """uint8 images ``(N, 3, H, W)`` to what the last layer takes ``(N, D)`` and logits ``(N, C)``.

    Args:
        model: a classifier whose last linear layer or convolution gives the logits.
        mean, std: of the channels, of values from 0 to 1.
        resolution: images of other sizes are resized to ``resolution x resolution``, bilinearly
            with antialiasing.

    Raises:
        ConfigError: no layer of the model is like that.
    """

    def __init__(self, model, mean, std, resolution):
        super().__init__()
        self.resolution = resolution
        self.register_buffer("mean", torch.as_tensor(mean).float()[:, None, None])
        self.register_buffer("std", torch.as_tensor(std).float()[:, None, None])
        body = copy.deepcopy(model).eval().requires_grad_(False)
        self.name = _last_layer(body)
        self.last = body.get_submodule(self.name)
        body.set_submodule(self.name, nn.Identity())
        self.body = body
        self._check(model)

    def forward(self, images):
        features = self.body(self._inputs(images))
        return features, self._logits(features)

    def _inputs(self, images):
        size = (self.resolution, self.resolution)
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return (x / 255 - self.mean) / self.std

    def _logits(self, features):
        if isinstance(self.last, nn.Linear):
            return self.last(features)
        return self.last(features[:, :, None, None]).flatten(1)

    @torch.no_grad()
    def _check(self, model):
        """Whether the layer that was found is the last thing that the model does."""
        size = self.resolution
        random = torch.Generator().manual_seed(0)
        images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=random)
        expected = copy.deepcopy(model).eval()(self._inputs(images))
        try:
            found = self(images)[1]
            same = torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        except RuntimeError:  # shapes that do not go together
            same = False
        if not same:
            raise ConfigError(
                f"{type(model).__name__}: its logits do not come from its last layer, {self.name}, "
                "alone, so what that takes are no features"
            )


def _last_layer(model):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return names[-1]


def load_features(checkpoint, resolution=None):
    """:class:`ClassifierFeatures` of ``best.pt`` of a classifier.

    Args:
        checkpoint: its path.
        resolution: that images are resized to; None: the one it was validated on, as its config
            has it.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
        ConfigError: the config has no resolution and none is given; see also
            :class:`ClassifierFeatures`.
    """
    state = FORMAT.load(checkpoint)
    return loading(checkpoint, _features, state, checkpoint, resolution)


def _features(state, checkpoint, resolution):
    config = from_dict({**state["config"], "device": "cpu"})
    resolution = resolution or config.val_resolution or config.resolution
    if resolution is None:
        raise ConfigError(
            f"{checkpoint} was trained on images as they are, and does not say how large these "
            "were: give it (--resolution 32 for CIFAR-10)"
        )
    model = build_classifier(config, len(state["classes"]))
    model.load_state_dict(state["model"])
    return ClassifierFeatures(model, state["mean"], state["std"], resolution)


def export_features(features, path):
    """Write a module as ``torch.export.save`` does, for any number of images of any size.

    Raises:
        NoSpaceError: the disk is full; what was at ``path`` is still there.
    """
    sizes = {dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)}
    size = features.resolution
    # Not a square of the resolution itself, so that nothing is taken for constant.
    images = torch.zeros(2, 3, size + 5, size + 9, dtype=torch.uint8)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    program = torch.export.export(features.eval(), (images,), dynamic_shapes=(sizes,), strict=False)
    with replacing(path) as partial:
        torch.export.save(program, partial)
