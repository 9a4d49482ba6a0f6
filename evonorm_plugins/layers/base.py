"""The contract of every norm-activation layer."""

import numbers

import torch
from torch import nn

from evonorm_plugins import functional as F
from evonorm_plugins.kernels import IMPLEMENTATIONS


class NormAct(nn.Module):
    """A layer that normalizes and activates ``(N, C, H, W)`` in one formula.

    Args:
        num_features: number of channels C.
        apply_act: False gives what the paper puts where no activation follows: for EvoNorms the
            channel-wise affine transform alone, for the baselines their norm without activation.
        eps: added to every variance or mean of squares under the square root.
        device, dtype: of the parameters.

    Parameters ``weight`` (gamma, ones), ``bias`` (beta, zeros) and for some layers ``v``, all
    ``(C,)``; the keys are those of timm's ``EvoNorm2d*`` layers.

    Raises:
        ValueError: an option makes no sense, or the input has not 4 dimensions and C channels.
        TypeError: the input is not floating point.
    """

    # Value that v starts at; None where the layer has no v.
    v_init = None
    # Whether gamma and beta are the layer's own.
    affine = True

    def __init__(self, num_features, *, apply_act=True, eps=1e-5, device=None, dtype=None):
        super().__init__()
        _check_positive_int("num_features", num_features)
        if not (_is_number(eps) and eps > 0):
            raise ValueError(f"eps={eps!r} must be a number above 0")
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = eps
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **options))
        self.bias = nn.Parameter(torch.zeros(num_features, **options))
        if apply_act and self.v_init is not None:
            self.v = nn.Parameter(torch.full((num_features,), float(self.v_init), **options))
        else:
            self.register_parameter("v", None)

    def forward(self, x, weight=None, bias=None):
        """``(N, C, H, W)`` to the same shape, dtype and memory format.

        ``weight`` and ``bias``, ``(C,)`` or ``(N, C)`` with one for each sample, are for a layer
        whose own were given up by :meth:`release_affine`.
        """
        self._check_input(x)
        if self.affine != (weight is None) or self.affine != (bias is None):
            name = type(self).__name__
            raise ValueError(
                f"{name} has its own weight and bias; release_affine() gives them up"
                if self.affine
                else f"{name} gave up its weight and bias: call it with both"
            )
        if self.affine:
            weight, bias = self._own_affine()
        return (self._norm_act if self.apply_act else self._norm)(x, weight, bias)

    def release_affine(self):
        """Remove gamma and beta: every call gives them from now on. Returns the layer."""
        self.affine = False
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        return self

    def fold_affine(self, bias=None):
        """Make gamma the constant 1 and beta 0, or ``bias``: other layers have taken them over.

        Constants are neither parameters nor part of the ``state_dict``. Returns the layer.
        """
        ones = torch.ones_like(self.weight, requires_grad=False)
        del self.weight
        self.register_buffer("weight", ones, persistent=False)
        if bias is None:
            del self.bias
            self.register_buffer("bias", torch.zeros_like(ones), persistent=False)
        else:
            self.bias = nn.Parameter(bias.to(self.bias), self.bias.requires_grad)
        return self

    @property
    def affine_is_folded(self):
        """Whether both gamma and beta are constants; see :meth:`fold_affine`."""
        return {"weight", "bias"} <= self._buffers.keys()

    def _own_affine(self):
        return self.weight, self.bias

    def _norm_act(self, x, weight, bias):
        raise NotImplementedError

    def _norm(self, x, weight, bias):
        return F.channel_affine(x, weight, bias)

    def options(self):
        """Keyword arguments that build this layer again, ``apply_act`` aside."""
        return {"eps": self.eps}

    def without_activation(self):
        """A new layer of this kind for a place that no activation follows."""
        p = next(self.parameters())
        return type(self)(
            self.num_features, apply_act=False, device=p.device, dtype=p.dtype, **self.options()
        )

    def extra_repr(self):
        shown = {"apply_act": self.apply_act, **self.options()}
        return ", ".join([str(self.num_features), *(f"{k}={v}" for k, v in shown.items())])

    def _check_input(self, x):
        name = type(self).__name__
        if x.dim() != 4:
            raise ValueError(
                f"{name} takes (N, C, H, W), got {tuple(x.shape)}; "
                "give (N, C) and (C, H, W) the missing dimensions with size 1"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{name}({self.num_features}) got {x.shape[1]} channels in {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} takes a floating point tensor, got {x.dtype}")


class Fused:
    """Adds to a layer the choice of what computes it.

    Args:
        impl: "auto", "torch", "cpu" or "triton"; see :mod:`evonorm_plugins.functional`.
    """

    def __init__(self, num_features, *, impl="auto", **options):
        super().__init__(num_features, **options)
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
        self.impl = impl

    def _norm(self, x, weight, bias):
        return F.channel_affine(x, weight, bias, impl=self.impl)

    def options(self):
        return {**super().options(), "impl": self.impl}


def _check_positive_int(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")


def _check_momentum(value):
    if not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"momentum={value!r} must be a number between 0 and 1")


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
