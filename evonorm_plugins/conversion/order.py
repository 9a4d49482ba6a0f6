"""What follows where a forward cannot be traced: the order of children tells, with care."""

from types import CodeType

from torch import nn

from evonorm_plugins.conversion import kinds

_COMPUTING = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.modules.pooling._MaxPoolNd),
    *(nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd),
)
_WORDS = {"act", "activation", "act_fn", "nonlinearity", "swish", "hard_swish", "hswish", "sigmoid"}


def starts_with_activation(module, activations):
    """Whether a module that cannot be traced may begin with an activation.

    It does not if it is a convolution or a kin of it, or if its first child computes something else
    and its forward names no activation.
    """
    if isinstance(module, _COMPUTING):
        return False
    return _first_leaf(module) in activations or names_activation(module, activations)


def follower(owner, child, activations):
    """What follows ``child`` in ``owner``, whose forward cannot be traced: ``(name, reason)``.

    ``name`` is that of the activation that does, None if none does; ``reason`` says why it cannot
    be told, or is None. An activation goes with a norm before it only where every norm and
    activation of ``owner`` stand in such pairs.
    """
    if kinds.has_no_forward(owner):
        return None, f"a {type(owner).__name__} does not say in which order"
    children = list(owner.named_children())
    at = next(i for i, (_, other) in enumerate(children) if other is child)
    after = next((pair for pair in children[at + 1 :] if not kinds.passes(pair[1])), None)
    if after is not None and after[1] in activations:
        norms = [i for i, (_, other) in enumerate(children) if kinds.is_norm(other)]
        acts = [i for i, (_, other) in enumerate(children) if other in activations]
        paired = [i + 1 for i in norms] == acts
        return (after[0], None) if paired else (None, "norms and activations are no pairs")
    if after is not None and _first_leaf(after[1]) in activations:
        return None, f"{after[0]} begins with an activation"
    if names_activation(owner, activations):
        return None, "and it applies an activation itself"
    return None, None


def _first_leaf(module):
    for inner in module.modules():
        if next(inner.children(), None) is None and not kinds.passes(inner):
            return inner
    return None


def names_activation(module, activations):
    """Whether forward, or a method that it calls, has a name in it that means an activation."""
    words = _WORDS | set(kinds.FUNCTION_NAMES)
    words |= {name for name, child in module.named_children() if child in activations}
    seen, pending = set(), [type(module).forward]
    while pending:
        code = getattr(pending.pop(), "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        names = _names(code)
        if names & words:
            return True
        pending += [m for n in names if callable(m := getattr(type(module), n, None))]
    return False


def _names(code):
    inner = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inner)
