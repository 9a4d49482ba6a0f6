"""Classifiers of torchvision and timm with any norm-activation layer, without trained weights."""

import inspect

from evonorm_plugins.conversion import convert
from evonorm_plugins.conversion.models import build_model
from evonorm_plugins.errors import ConvertError

# They give several logits in training, unless told not to.
WITH_AUXILIARY = ("torchvision:googlenet", "torchvision:inception_v3")


def build_library_model(name, num_classes, norm, options):
    """``"torchvision:NAME"`` or ``"timm:NAME"``, its norms and activations replaced by ``norm``.

    Args:
        norm: None leaves the model as it is.
        options: of the library's constructor.

    Raises:
        ValueError: an unknown library, model or option, no classifier, or no norms to replace.
        ImportError: the library is not installed.
    """
    if name.startswith("torchvision:"):
        _check_is_classifier(name.partition(":")[2])
    if name in WITH_AUXILIARY:
        if options.get("aux_logits"):
            raise ValueError(f"{name}: auxiliary classifiers are not trained; leave out aux_logits")
        options = {"aux_logits": False, "init_weights": True, **options}
    try:
        model = build_model(name, num_classes=num_classes, **options)
    except (ConvertError, ImportError):
        raise
    except Exception as error:  # whatever a constructor does with a value that it cannot use
        raise ValueError(f"{name} cannot be built with {options}: {error!r}") from None
    _check_numbers(name, model, options)
    return model if norm is None else convert(model, norm).model


def _check_numbers(name, model, options):
    # Text, as YAML reads 1e-1, is kept by some constructors and fails in the first step.
    parameters = inspect.signature(type(model)).parameters
    for key, value in options.items():
        default = getattr(parameters.get(key), "default", None)
        if isinstance(value, str) and type(default) in (int, float):
            raise ValueError(f"{name}: {key}={value!r} is not a number, such as {default}")


def _check_is_classifier(name):
    from torchvision import models

    if name in models.list_models() and name not in models.list_models(module=models):
        raise ValueError(f"torchvision's {name} is no classifier of images")
