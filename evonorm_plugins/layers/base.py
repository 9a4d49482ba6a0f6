"""The contract of every norm-activation layer."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from evonorm_plugins import functional as F
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.kernels import IMPLEMENTATIONS
from evonorm_plugins.planes import as_planes

if TYPE_CHECKING:
    from typing_extensions import Self


class NormAct(nn.Module):
    """A layer that normalizes and activates ``(N, C, H, W)`` in one formula.

    It takes any other number of spatial dimensions as well: ``(N, C)``, ``(N, C, L)``,
    ``(N, C, D, H, W)``. A statistic over w,h is then over all of them; of ``(N, C)``, over the one
    element that there is.

    Args:
        num_features: number of channels C.
        apply_act: False gives what the paper puts where no activation follows: for EvoNorms the
            channel-wise affine transform alone, for the baselines their norm without activation.
        eps: added to every variance or mean of squares under the square root.
        device, dtype: of the parameters. A layer on the meta device has no values; ``to_empty()``
            and then :meth:`reset_parameters` give it some.

    Parameters ``weight`` (gamma, ones), ``bias`` (beta, zeros) and for some layers ``v``, all
    ``(C,)``; the keys are those of timm's ``EvoNorm2d*`` layers.

    The transforms of ``torch.func`` (``grad``, ``jacrev``, ``jvp``, ``vmap`` and what they combine
    to, such as gradients of every sample) and forward-mode differentiation run the plain formula.
    To ``torch.fx`` a layer is one operation, as torch's norms are.

    Raises:
        ConfigError: an option makes no sense.
        ValueError: the input has not at least 2 dimensions, the second of them C channels.
        TypeError: the input is not floating point.
    """

    weight: Tensor
    bias: Tensor
    v: Any  # a Parameter, or None
    # Value that v starts at; None where the layer has no v.
    v_init: ClassVar[float | None] = None
    # Whether gamma and beta are the layer's own.
    affine = True

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("num_features", num_features)
        if not isinstance(apply_act, bool):
            raise ConfigError(f"apply_act={apply_act!r} must be True or False")
        if not (_is_number(eps) and 0 < eps < math.inf):
            raise ConfigError(f"eps={eps!r} must be a finite number above 0")
        _check_device_and_dtype(device, dtype)
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = eps
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **options))
        self.bias = nn.Parameter(torch.zeros(num_features, **options))
        if apply_act and self.v_init is not None:
            self.v = nn.Parameter(torch.full((num_features,), float(self.v_init), **options))
        else:
            self.register_parameter("v", None)

    def forward(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """``(N, C)`` with any number of spatial dimensions to the same shape, dtype and format.

        ``weight`` and ``bias``, ``(C,)`` or ``(N, C)`` with one for each sample, are for a layer
        whose own were given up by :meth:`release_affine`.
        """
        if isinstance(x, fx.Proxy):
            return as_one_operation(self, *((x,) if weight is None else (x, weight, bias)))
        shape = x.shape
        if len(shape) != 4 or shape[1] != self.num_features or not x.is_floating_point():
            return self._of_planes(x, weight, bias)
        affine = self.affine
        if affine is not (weight is None) or affine is not (bias is None):
            name = type(self).__name__
            raise ValueError(
                f"{name} has its own weight and bias; release_affine() gives them up"
                if affine
                else f"{name} gave up its weight and bias: call it with both"
            )
        if affine:
            weight, bias = self._own_affine()
        if self.apply_act:
            return self._norm_act(x, weight, bias)
        return self._norm(x, weight, bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give parameters and moving statistics the values that they start from."""
        for tensor, value in ((self.weight, 1), (self.bias, 0), (self.v, self.v_init)):
            if tensor is not None and value is not None:
                tensor.fill_(value)

    def release_affine(self) -> Self:
        """Remove gamma and beta: every call gives them from now on. Returns the layer."""
        self.affine = False
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        return self

    def fold_affine(self, bias: Tensor | None = None) -> Self:
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
    def affine_is_folded(self) -> bool:
        """Whether both gamma and beta are constants; see :meth:`fold_affine`."""
        return {"weight", "bias"} <= self._buffers.keys()

    def _own_affine(self) -> tuple[Any, Any]:
        # Not as attributes, which nn.Module finds last of all.
        own = self._parameters
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or bias is None:  # constants, or computed, as parametrizations are
            return self.weight, self.bias
        return weight, bias

    def _own_v(self) -> Any:
        v = self._parameters.get("v")
        return self.v if v is None else v

    def _norm_act(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        raise NotImplementedError

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.channel_affine(x, weight, bias)

    def options(self) -> dict[str, Any]:
        """Keyword arguments that build this layer again, ``apply_act`` aside."""
        return {"eps": self.eps}

    def without_activation(self) -> NormAct:
        """A layer of this kind for a place that no activation follows.

        What both have is copied: gamma, beta and moving statistics, ``requires_grad`` and the mode.
        """
        own = {**dict(self.named_buffers()), **dict(self.named_parameters())}
        like = next((t for t in own.values() if t.is_floating_point()), torch.empty(()))
        layer = type(self)(
            self.num_features,
            apply_act=False,
            device=like.device,
            dtype=like.dtype,
            **self.options(),
        )
        if not self.affine:
            layer.release_affine()
        with torch.no_grad():
            for name, new in (*layer.named_parameters(), *layer.named_buffers()):
                if name in own:
                    new.copy_(own[name])
                    new.requires_grad_(own[name].requires_grad)
        return layer.train(self.training)

    def describe(self) -> str:
        """What weights of this layer must agree on: class, groups, the digest of a layer graph.

        Cross-replica layers are described as their plain counterparts. It is part of the metadata
        of a ``state_dict``, beside torch's version numbers, as ``norm``.
        """
        kind = type(self).__name__.removeprefix("Sync")
        if not self.apply_act:
            return f"{kind} without activation"
        details = self._details()
        return f"{kind}({', '.join(details)})" if details else kind

    def _details(self) -> list[str]:
        groups = getattr(self, "groups", None)
        if groups is None:
            return []
        return [f"groups={F.effective_groups(self.num_features, groups)}"]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        metadata.setdefault(prefix[:-1], {})["norm"] = self.describe()

    def extra_repr(self) -> str:
        shown = {"apply_act": self.apply_act, **self.options()}
        return ", ".join([str(self.num_features), *(f"{k}={v}" for k, v in shown.items())])

    def _of_planes(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """What :meth:`forward` gives for an ``x`` that is not ``(N, C, H, W)``, or an error."""
        name, shape = type(self).__name__, tuple(x.shape)
        if len(shape) < 2:
            raise ValueError(
                f"{name} takes (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), got {shape}"
            )
        if shape[1] != self.num_features:
            raise ValueError(
                f"{name}({self.num_features}) got {shape[1]} channels in {shape}{self._hint(shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} takes a floating point tensor, got {x.dtype}")
        return self.forward(as_planes(x), weight, bias).reshape(x.shape)

    def _hint(self, shape: tuple[int, ...]) -> str:
        """What may have been meant by an input whose second dimension is not the channels."""
        if len(shape) > 2 and shape[0] == self.num_features:
            return "; without a batch it needs x.unsqueeze(0)"
        if len(shape) > 2 and shape[-1] == self.num_features:
            return "; channels come second: x.movedim(-1, 1)"
        return ""


class Fused(NormAct):
    """Adds to a layer the choice of what computes it.

    Args:
        impl: "auto", "torch", "cpu" or "triton"; see :mod:`evonorm_plugins.functional`.
    """

    def __init__(self, num_features: int, *, impl: str = "auto", **options: Any) -> None:
        super().__init__(num_features, **options)
        if impl not in IMPLEMENTATIONS:
            raise ConfigError(
                f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}"
            )
        self.impl = impl

    def _norm(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.channel_affine(x, weight, bias, impl=self.impl)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "impl": self.impl}


def as_one_operation(module: nn.Module, *inputs: Any) -> Any:
    """What a tracer of ``torch.fx`` makes of a call of ``module``: one node, as torch's layers."""
    tracer = inputs[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), inputs, {})


def check_positive_int(name: str, value: object) -> None:
    """Raise ConfigError where an option is no integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value!r} must be an integer of at least 1")


def number_of_groups(num_features: int, groups: int | None, group_size: int | None) -> int:
    """Groups of ``num_features`` channels by one option or the other; 32 by neither.

    Raises:
        ConfigError: both are given, one is no integer of at least 1, or groups of that size do not
            make up the channels.
    """
    if group_size is None:
        groups = 32 if groups is None else groups
        check_positive_int("groups", groups)
        return groups
    check_positive_int("group_size", group_size)
    if groups is not None:
        raise ConfigError(f"groups={groups!r} and group_size={group_size}: give one of them")
    if num_features % group_size:
        raise ConfigError(f"group_size={group_size} does not divide {num_features} channels")
    return num_features // group_size


def check_momentum(value: Any) -> None:
    """Raise ConfigError where ``momentum`` is no number between 0 and 1."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise ConfigError(f"momentum={value!r} must be a number between 0 and 1")


def _check_device_and_dtype(device: Any, dtype: Any) -> None:
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device={device!r} is no device of torch, such as 'cuda:0'") from None
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype={dtype!r} is no floating point dtype, such as torch.float32")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
