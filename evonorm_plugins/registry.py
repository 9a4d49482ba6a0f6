"""Name -> norm-activation layer.

A name is that of the paper's tables; case, spaces and punctuation do not matter, so ``EvoNormS0``,
``EvoNorm-S0`` and ``evonorm_s0`` are one. Options can be part of the name, which is how a YAML
config gives them: ``EvoNormS0(groups=16)``.

The path of a layer graph's JSON file, as the layer search exports it, is a name too:
``layers/found.json``, ``layers/found.json(groups=16)``.
"""

import ast
import difflib
import re

from evonorm_plugins import layers

_FACTORIES = {}  # name as registered -> factory(num_features, **options)
_NAMES = {}  # name or alias without case and punctuation -> name as registered


def register_norm_act(name, factory, *, aliases=()):
    """Make ``factory(num_features, *, apply_act=True, **options)`` available under ``name``.

    Raises:
        ValueError: the name or an alias is taken, or holds no letter.
    """
    keys = [_key(n) for n in (name, *aliases)]
    for key, shown in zip(keys, (name, *aliases), strict=True):
        if not key:
            raise ValueError(f"{shown!r} holds no letter or digit to be found by")
        if key in _NAMES:
            raise ValueError(f"{shown!r} is taken by {_NAMES[key]!r}")
    _FACTORIES[name] = factory
    _NAMES.update(dict.fromkeys(keys, name))


def list_norm_acts():
    """Registered names, in order of registration."""
    return list(_FACTORIES)


def is_norm_act(name):
    """Whether :func:`get_norm_act` knows ``name``, options in parentheses included.

    True for whatever looks like the path of a layer graph: building it says what is wrong with it.
    """
    if not isinstance(name, str):
        return False
    base, _ = _split(name)
    return _is_path(base) or _key(base) in _NAMES


def get_norm_act(name, num_features, **options):
    """Build a norm-activation layer.

    Args:
        name: a registered name (``"EvoNormS0"``), one with options (``"EvoNormS0(groups=16)"``),
            the path of a layer graph, which ends in ``.json``, with or without options, or a
            callable that takes ``num_features`` and the options.
        num_features: number of channels.
        options: keyword arguments of the layer; they win over those in the name.

    Raises:
        ValueError: an unknown name (the message lists the known ones), a file that cannot be read
            or holds no layer graph, or a bad value.
        TypeError: an option the layer does not have.
    """
    if callable(name):
        return name(num_features, **options)
    base, in_name = _parse(name)
    if _is_path(base):
        # Here, not above: layer graphs are for those who use them.
        from evonorm_plugins.layers.graph.module import load_layer

        return load_layer(base.strip(), num_features, **{**in_name, **options})
    key = _key(base)
    if key not in _NAMES:
        raise ValueError(_unknown(base))
    return _FACTORIES[_NAMES[key]](num_features, **{**in_name, **options})


def _key(name):
    return "".join(c for c in name.lower() if c.isalnum())


def _split(name):
    """``name`` and its options, in parentheses; a path may hold parentheses of its own."""
    path = re.match(r"(.*\.json)\s*(?=\(|$)", name, re.IGNORECASE | re.DOTALL)
    base = path[0] if path else name.partition("(")[0]
    return base, name[len(base) :]


def _is_path(base):
    return base.strip().lower().endswith(".json")


def _parse(name):
    if not isinstance(name, str):
        raise ValueError(f"norm name must be a string or a callable, got {name!r}")
    base, options = _split(name)
    if not options:
        return base, {}
    try:
        call = ast.parse("f" + options.strip(), mode="eval").body
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        # One pair of brackets, no positional argument, no **, no keyword twice.
        plain = isinstance(call.func, ast.Name) and not call.args and None not in options
        if not plain or len(options) < len(call.keywords):
            raise SyntaxError
        return base, options
    except (AttributeError, SyntaxError, TypeError, ValueError):
        raise ValueError(
            f"cannot read the options of {name!r}; they look like 'EvoNormS0(groups=16, eps=1e-5)'"
        ) from None


def _unknown(name):
    close = difflib.get_close_matches(_key(name), _NAMES, n=1)
    hint = f" (did you mean {_NAMES[close[0]]!r}?)" if close else ""
    known = f"{', '.join(_FACTORIES)}; or the path of a layer graph, which ends in .json"
    return f"unknown norm-activation {name!r}{hint}; known: {known}"


for _name in ("B0", "B1", "B2", "S0", "S1", "S2"):
    register_norm_act(f"EvoNorm{_name}", getattr(layers, f"EvoNorm{_name}"))
for _name in ("B0", "B1", "B2"):
    register_norm_act(f"SyncEvoNorm{_name}", getattr(layers, f"SyncEvoNorm{_name}"))
register_norm_act("BN-ReLU", layers.BNReLU)
register_norm_act("BN-PReLU", layers.BNPReLU)
register_norm_act("BN-Swish-1", layers.BNSwish1, aliases=["BN-SiLU"])
register_norm_act("BN-Swish", layers.BNSwish)
register_norm_act("GN-ReLU", layers.GNReLU)
register_norm_act("GN-Swish-1", layers.GNSwish1, aliases=["GN-SiLU"])
register_norm_act("GN-Swish", layers.GNSwish)
register_norm_act("FRN", layers.FRN, aliases=["FRN-TLU"])
register_norm_act("LN-ReLU", layers.LNReLU)
register_norm_act("PixelNorm-ReLU", layers.PixelNormReLU)
register_norm_act("Random", layers.RandomLayer)
register_norm_act("Random + rej", layers.RandomRejLayer)
register_norm_act("RS + rej", layers.RSRejLayer)
