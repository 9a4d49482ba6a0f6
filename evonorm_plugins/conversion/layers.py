"""The layer that takes a norm's place."""

import torch
from torch import nn

from evonorm_plugins.conversion import kinds
from evonorm_plugins.errors import ConvertError
from evonorm_plugins.registry import get_norm_act, try_norm_act

_OURS = ("apply_act", "device", "dtype")


def check_layer(name, options):
    """Build one layer, so that a wrong name or option is known before the model is touched.

    Raises:
        ConvertError: there is no layer of that name, or it does not take the options.
    """
    taken = [option for option in _OURS if option in options]
    if taken:
        raise ConvertError(f"{taken[0]} is decided for every norm by itself; leave it out")
    try:
        return try_norm_act(name, **options)
    except TypeError as error:  # "__init__() got an unexpected keyword argument 'groups'"
        raise ConvertError(f"{name} {str(error).rpartition('() ')[2]}") from error
    except ValueError as error:
        raise ConvertError(str(error)) from error


def new_layer(norm, name, options, *, apply_act, like):
    """The norm-activation layer ``name`` in place of ``norm``, in its mode.

    Gamma and beta are those of the norm, the same parameters where it has them as such. Buffers of
    equal names (the moving variance) are copied.

    Args:
        like: a tensor whose device and dtype count where the norm has none.
    """
    tensors = [*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point()), like]
    reference = next(t for t in tensors if t is not None)
    channels = kinds.num_features(norm)
    factory = {"device": reference.device, "dtype": reference.dtype}
    layer = get_norm_act(name, channels, apply_act=apply_act, **factory, **options)
    # The baselines of this package hold torch's norm, which holds the parameters.
    holder = getattr(layer, "norm", layer)
    for key in ("weight", "bias"):
        _carry_parameter(norm, holder, key)
    buffers = dict(norm.named_buffers(recurse=False))
    with torch.no_grad():
        for key, buffer in holder.named_buffers(recurse=False):
            if key in buffers and buffers[key].shape == buffer.shape:
                buffer.copy_(buffers[key])
    weight = getattr(norm, "weight", None)
    if isinstance(weight, nn.Parameter):
        for parameter in layer.parameters():
            if parameter is not getattr(norm, "bias", None):
                parameter.requires_grad_(weight.requires_grad)
    return layer.train(norm.training)


def _carry_parameter(norm, holder, key):
    old, new = getattr(norm, key, None), getattr(holder, key, None)
    if old is None or new is None or old.shape != new.shape:
        return
    if isinstance(old, nn.Parameter):
        setattr(holder, key, old)
    else:  # a frozen norm has it as a buffer
        with torch.no_grad():
            new.copy_(old)
