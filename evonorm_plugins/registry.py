"""Name -> norm-activation layer.

A name is that of the paper's tables, or ``Candidate-B2`` of its Appendix B; case, spaces and
punctuation do not matter, so ``EvoNormS0``, ``EvoNorm-S0`` and ``evonorm_s0`` are one. Options can
be part of the name, which is how a YAML config gives them: ``EvoNormS0(groups=16)``.

The path of a layer graph's JSON file, as the layer search exports it, is a name too:
``layers/found.json``, ``layers/found.json(groups=16)``.
"""

import ast
import difflib
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from evonorm_plugins import layers
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers.candidates import UNNAMED, names_of

# Name as registered -> factory(num_features, **options).
_FACTORIES: dict[str, Callable[..., nn.Module]] = {}
# Name or alias without case and punctuation -> name as registered.
_NAMES: dict[str, str] = {}
# What a name may consist of, so that a slip of the keyboard is none.
_CHARACTERS = re.compile(r"[\w +./-]*")


def register_norm_act(
    name: str, factory: Callable[..., nn.Module], *, aliases: Iterable[str] = ()
) -> None:
    """Make ``factory(num_features, *, apply_act=True, **options)`` available under ``name``.

    Raises:
        ConfigError: the name or an alias is taken, holds no letter, or a character that no name can
            have.
    """
    names = (name, *aliases)
    keys = [_key(n) for n in names]
    for key, shown in zip(keys, names, strict=True):
        if not _CHARACTERS.fullmatch(shown) or _is_path(shown):
            raise ConfigError(
                f"{shown!r} is no name: letters, digits, spaces and _ + . / - make one, "
                "and those that end in .json are paths of layer graphs"
            )
        if not key:
            raise ConfigError(f"{shown!r} holds no letter or digit to be found by")
        if key in _NAMES:
            raise ConfigError(f"{shown!r} is taken by {_NAMES[key]!r}")
    _FACTORIES[name] = factory
    _NAMES.update(dict.fromkeys(keys, name))


def list_norm_acts() -> list[str]:
    """Registered names, in order of registration."""
    return list(_FACTORIES)


def registered_name(name: str) -> str | None:
    """The name as registered of one that is written in another way, or an alias; else None.

    Options in parentheses, and paths of layer graphs, are none of either.
    """
    return _NAMES.get(_key(name))


def is_norm_act(name: object) -> bool:
    """Whether :func:`get_norm_act` knows ``name``, options in parentheses included.

    True for whatever looks like the path of a layer graph: building it says what is wrong with it.
    """
    if not isinstance(name, str):
        return False
    base, _ = _split(name)
    return _is_path(base) or _key(base) in _NAMES


def get_norm_act(
    name: str | Callable[..., nn.Module], num_features: int, **options: Any
) -> nn.Module:
    """Build a norm-activation layer.

    Args:
        name: a registered name (``"EvoNormS0"``), one with options (``"EvoNormS0(groups=16)"``),
            the path of a layer graph, which ends in ``.json``, with or without options, or a
            callable that takes ``num_features`` and the options.
        num_features: number of channels.
        options: keyword arguments of the layer; they win over those in the name, where ``device``
            and ``dtype`` cannot be.

    Raises:
        InputError: an unknown name (the message lists the known ones), a file that cannot be read
            or holds no layer graph, or a bad value.
        TypeError: an option the layer does not have.
    """
    if callable(name):
        return name(num_features, **options)
    base, in_name = parse_name(name)
    if _is_path(base):
        # Here, not above: layer graphs are for those who use them.
        from evonorm_plugins.layers.graph.module import load_layer

        return load_layer(base.strip(), num_features, **{**in_name, **options})
    key = _key(base)
    if key not in _NAMES:
        raise ConfigError(_unknown(base))
    return _FACTORIES[_NAMES[key]](num_features, **{**in_name, **options})


def try_norm_act(name: str | Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A layer of some number of channels, so that a wrong name or option is known early.

    The arguments and the errors raised are those of :func:`get_norm_act`.
    """
    given = {**(parse_name(name)[1] if isinstance(name, str) else {}), **options}
    size = given.get("group_size")
    return get_norm_act(name, 32 * size if isinstance(size, int) and size > 0 else 32, **options)


def _known_graph(num_features: int, *, name: str, **options: Any) -> nn.Module:
    from evonorm_plugins.layers.graph.known import KNOWN
    from evonorm_plugins.layers.graph.module import graph_layer

    return graph_layer(KNOWN[name], num_features, **options)


def _key(name: str) -> str:
    """``name`` as it is looked up, empty where no name can be like that."""
    if not _CHARACTERS.fullmatch(name):
        return ""
    return "".join(c for c in name.lower() if c.isalnum())


def _split(name: str) -> tuple[str, str]:
    """``name`` and its options, in parentheses; a path may hold parentheses of its own."""
    path = re.match(r"(.*\.json)\s*(?=\(|$)", name, re.IGNORECASE | re.DOTALL)
    base = path[0] if path else name.partition("(")[0]
    return base, name[len(base) :]


def _is_path(base: str) -> bool:
    return base.strip().lower().endswith(".json")


def parse_name(name: object) -> tuple[str, dict[str, Any]]:
    """A name without its options, and these: ``"GN-ReLU", {"groups": 16}``.

    Raises:
        ConfigError: it is no text, or its options cannot be read.
    """
    if not isinstance(name, str):
        raise ConfigError(f"norm name must be a string or a callable, got {name!r}")
    base, in_brackets = _split(name)
    if not in_brackets:
        return base, {}
    try:
        call: Any = ast.parse("f" + in_brackets.strip(), mode="eval").body
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        # One pair of brackets, no positional argument, no **, no keyword twice.
        plain = isinstance(call.func, ast.Name) and not call.args and None not in options
        if not plain or len(options) < len(call.keywords):
            raise SyntaxError
    except (AttributeError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise ConfigError(
            f"cannot read the options of {_shortened(name)}; they look like "
            "'EvoNormS0(groups=16, eps=1e-5)'"
        ) from None
    for option in ("device", "dtype"):
        if option in options:
            raise ConfigError(f"{option} is no part of a name: the model decides it, not {name!r}")
    return base, options


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")


def _unknown(name: str) -> str:
    letters = "".join(c for c in name.lower() if c.isalnum())
    close = difflib.get_close_matches(letters[:100], _NAMES, n=1)
    hint = f" (did you mean {_NAMES[close[0]]!r}?)" if close else ""
    known = f"{', '.join(_FACTORIES)}; or the path of a layer graph, which ends in .json"
    return f"unknown norm-activation {_shortened(name)}{hint}; known: {known}"


for _name in ("B0", "B1", "B2", "S0", "S1", "S2"):
    _name = f"EvoNorm{_name}"
    register_norm_act(_name, getattr(layers, _name), aliases=names_of(_name))
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
for _name in UNNAMED:
    _factory = functools.partial(_known_graph, name=_name)
    register_norm_act(_name, _factory, aliases=names_of(_name))
