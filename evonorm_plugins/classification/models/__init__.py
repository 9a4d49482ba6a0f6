"""Architectures by name, each with any norm-activation layer.

``torchvision:NAME`` and ``timm:NAME`` are those libraries' models, whose norms and activations
:func:`evonorm_plugins.conversion` replaces.
"""

import difflib
import importlib
import inspect

# Name -> where its builder is. A builder takes ``num_classes``, ``norm`` and options of its own;
# ``width``, a factor of all channels, is an option of those that have it.
_BUILDERS = {
    "resnet50_cifar": "resnet",
    "resnet8_cifar": "cifar_resnet",
    "resnet20_cifar": "cifar_resnet",
    "mobilenetv2_cifar": "mobilenet",
    "efficientnet_b0_cifar": "efficientnet",
    "preact_resnet50": "resnet",
    "preact_resnet101": "resnet",
    "preact_resnet50d": "resnet",
    "mini_inception": "mini_inception",
}


def list_models():
    """Names of our own architectures."""
    return list(_BUILDERS)


def build_model(name, num_classes, norm, /, **options):
    """A classifier: images ``(N, 3, H, W)`` to logits ``(N, num_classes)``.

    Args:
        name: one of :func:`list_models`, ``"torchvision:NAME"`` or ``"timm:NAME"``.
        norm: a name of :func:`evonorm_plugins.list_norm_acts`, options in parentheses; None leaves
            the norms of a library's model as they are.
        options: of the architecture, ``width=`` for those that have one.

    Raises:
        ValueError: an unknown name, option or norm, or one that does not fit.
        ImportError: a library that is not installed.
    """
    if ":" in name:
        from evonorm_plugins.classification.models.libraries import build_library_model

        return build_library_model(name, num_classes, norm, options)
    if name not in _BUILDERS:
        close = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown model {name!r}{hint}; known: {', '.join(_BUILDERS)}, torchvision:NAME, "
            "timm:NAME"
        )
    if norm is None:
        raise ValueError(f"{name} needs a norm; BN-ReLU is the usual one")
    module = importlib.import_module(f"{__name__}.{_BUILDERS[name]}")
    builder = getattr(module, name)
    known = [p for p in inspect.signature(builder).parameters if p not in ("num_classes", "norm")]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    try:
        return builder(num_classes=num_classes, norm=norm, **options)
    except TypeError as error:  # of an option of the architecture or of the norm
        given = {"norm": norm, **options}
        raise ValueError(f"{name} cannot be built with {given}: {error}") from None
