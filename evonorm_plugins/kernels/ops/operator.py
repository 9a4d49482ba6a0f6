"""How an operator is registered, and called past the dispatcher where nobody looks on."""

import inspect

import torch

from evonorm_plugins.torch_private import nobody_looks_on

_library = torch.library.Library("evonorm", "DEF")
OPERATORS = {}  # by name
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


class Operator:
    """An operator and the function that it calls.

    The dispatcher's way through Python and back takes longer than a kernel does for a small tensor.

    Args:
        schema: name, arguments and results, in the notation of ``torch.library``.
        tensors: how many arguments, the first ones, are tensors.
        kernel: takes tensors of any device, gives the results.
        fake: takes the same and gives tensors of the same shape, dtype and strides.
        setup_context, backward: as of ``torch.library.register_autograd``; None: no gradient.
    """

    def __init__(self, schema, tensors, kernel, fake, setup_context=None, backward=None):
        _library.define(schema)
        name = schema.partition("(")[0]
        names = list(inspect.signature(kernel).parameters)[:tensors]
        _library.impl(name, kernel, "CompositeExplicitAutograd")

        def fake_on_one_device(*arguments):
            first = arguments[0].device
            for argument, t in zip(names, arguments, strict=False):
                if t is not None and t.device != first:
                    raise ValueError(f"{argument} is on {t.device}, {names[0]} on {first}")
            return fake(*arguments)

        torch.library.register_fake(f"evonorm::{name}", fake_on_one_device, lib=_library)
        self._tensors, self._kernel, self._apply = tensors, kernel, None
        self._dispatched = getattr(torch.ops.evonorm, name).default
        OPERATORS[name] = self
        if backward is None:
            return
        torch.library.register_autograd(
            f"evonorm::{name}", backward, setup_context=setup_context, lib=_library
        )

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *arguments):
                result = kernel(*arguments)
                setup_context(ctx, arguments, result)
                return result

        Function.backward = staticmethod(backward)
        self._apply = Function.apply

    def __call__(self, *arguments):
        tensors = arguments[: self._tensors]
        if (
            torch.compiler.is_compiling()
            or not _PLAIN.issuperset(map(type, tensors))
            or not nobody_looks_on()
        ):
            return self._dispatched(*arguments)
        if self._apply and torch.is_grad_enabled():
            for t in tensors:
                if t is not None and t.requires_grad:
                    return self._apply(*arguments)
        return self._kernel(*arguments)
