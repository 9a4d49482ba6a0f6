"""Convolutions and linear layers that take over a channel's scale and shift.

Everything is computed in float64 and rounded once, to the dtype of the layer. Parameters are
replaced, never changed in place: another layer may share them.
"""

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def exact(tensor):
    """``tensor`` in float64 on the CPU, the one device that surely has it."""
    return tensor.detach().to("cpu", torch.float64)


def out_channels(layer):
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def in_channels(layer):
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def dims(layer):
    """Number of dimensions of an input whose second one are the channels."""
    return 2 if isinstance(layer, nn.Linear) else 2 + len(layer.kernel_size)


def absorb_output(layer, scale, shift):
    """Make ``layer(x)`` what ``layer(x) * scale + shift`` was; both ``(out_channels,)``."""
    bias = 0 if layer.bias is None else exact(layer.bias)
    factor = _along(layer, scale, 1 if isinstance(layer, TRANSPOSED) else 0)
    _replace(layer, "weight", exact(layer.weight) * factor)
    _replace(layer, "bias", bias * scale + shift)


def absorb_input(layer, scale, shift=None):
    """Make ``layer(x)`` what ``layer(x * scale + shift)`` was; both ``(C,)``.

    A linear layer may have several features for each of the C channels, as after flattening. A
    shift is exact where :func:`why_no_shift` knows nothing against it.
    """
    repeats = in_channels(layer) // scale.numel()
    axis = 0 if isinstance(layer, TRANSPOSED) else 1
    weight = exact(layer.weight)
    if shift is not None:
        bias = 0 if layer.bias is None else exact(layer.bias)
        added = weight * _along(layer, shift.repeat_interleave(repeats), axis)
        _replace(layer, "bias", bias + added.flatten(1).sum(1))
    _replace(layer, "weight", weight * _along(layer, scale.repeat_interleave(repeats), axis))


def why_no_shift(layer):
    """Why a shift of the input is not the same shift of the output everywhere, or None."""
    if isinstance(layer, TRANSPOSED):
        return "adds up fewer numbers at the borders"
    if isinstance(layer, CONVOLUTIONS) and layer.padding_mode == "zeros" and _pads(layer):
        return "pads with zeros, which have no beta"
    return None


def _pads(convolution):
    if convolution.padding == "same":
        return any(k > 1 for k in convolution.kernel_size)
    return convolution.padding != "valid" and any(convolution.padding)


def _along(layer, numbers, axis):
    """``numbers``, one a channel, as they multiply the weight whose channels lie along ``axis``.

    Along axis 1 a weight has the channels of one group, and another group's in other rows.
    """
    rows, groups = layer.weight.shape[0], getattr(layer, "groups", 1)
    if axis == 0:
        factor = numbers[:, None]
    else:
        factor = numbers.view(groups, -1).repeat_interleave(rows // groups, 0)
    return factor.reshape(*factor.shape, *[1] * (layer.weight.dim() - 2))


def _replace(layer, name, value):
    old = getattr(layer, name)
    like = layer.weight if old is None else old
    new = torch.empty(value.shape, dtype=like.dtype, device=like.device)
    if old is not None:
        new = torch.empty_like(old)  # in its memory format
    setattr(layer, name, nn.Parameter(new.copy_(value), like.requires_grad))
