"""Models of torchvision and timm by name, for the command line."""

import difflib
import importlib

import torch

from evonorm_plugins.errors import ConvertError

LIBRARIES = ("torchvision", "timm")


def build_model(name, **options):
    """A model without weights.

    Args:
        name: ``"torchvision:NAME"``, ``"timm:NAME"``, or a name that torchvision or else timm has.
        options: of the library's constructor.

    Raises:
        ConvertError: there is no such model, or its library is not installed.
    """
    library, _, bare = name.rpartition(":")
    if library and library not in LIBRARIES:
        raise ConvertError(f"{name!r}: models come from {' and '.join(LIBRARIES)}, not {library}")
    known = {}
    for found in (library,) if library else LIBRARIES:
        known[found] = _names(found)
        if bare in (known[found] or ()):
            break
    else:
        raise ConvertError(_unknown(name, bare, known))
    if found == "timm":
        return importlib.import_module("timm").create_model(bare, **options)
    if _is_detection(bare):
        options = {"weights_backbone": None, **options}
    return importlib.import_module("torchvision").models.get_model(bare, weights=None, **options)


def example_inputs(model, size=None):
    """Inputs to count operations with: one image of zeros, ``size`` x ``size``, or a clip of 16.

    Args:
        size: None for that of the model's own configuration (timm's), or 224. Detectors, which are
            given a list of images, scale it to the size that they work on.
    """
    configured = getattr(model, "default_cfg", None) or {}
    size = size or configured.get("input_size", (3, 224, 224))[-1]
    if type(model).__module__.startswith("torchvision.models.detection"):
        return ([torch.zeros(3, size, size)],)
    if type(model).__module__.startswith("torchvision.models.video"):
        return (torch.zeros(1, 3, 16, size, size),)
    return (torch.zeros(1, 3, size, size),)


def _is_detection(name):
    models = importlib.import_module("torchvision").models
    return name in models.list_models(module=models.detection)


def _names(library):
    try:
        module = importlib.import_module(library)
    except ImportError:
        return None
    return module.models.list_models() if library == "torchvision" else module.list_models()


def _unknown(name, bare, known):
    missing = [library for library, names in known.items() if names is None]
    names = [n for names in known.values() for n in names or ()]
    close = difflib.get_close_matches(bare, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    absent = f"; {' and '.join(missing)} cannot be imported" if missing else ""
    return f"unknown model {name!r}{hint}{absent}"
