"""How an operator is registered, and called past the dispatcher where nobody looks on."""

import inspect
from operator import itemgetter

import torch

from evonorm_plugins.kernels.library import Unfit
from evonorm_plugins.kernels.ops.results import nothing
from evonorm_plugins.torch_private import nobody_looks_on

_library = torch.library.Library("evonorm", "DEF")
OPERATORS = {}  # by name
# What a kernel raises for arguments that it does not take as they are: None, other shapes.
_MISFIT = (ValueError, AttributeError, TypeError, IndexError)
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))
# Looked up once, for these functions run with every call.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled


def is_direct(*tensors):
    """Whether a call with these tensors or Nones may go past the dispatcher, now.

    The dispatcher's way through Python and back takes longer than a kernel does for a small tensor.
    """
    return not _is_compiling() and _PLAIN.issuperset(map(type, tensors)) and nobody_looks_on()


class Operator:
    """An operator, and the function that it calls.

    Args:
        schema: name, arguments and results, in the notation of ``torch.library``.
        tensors: how many arguments, the first ones, are tensors.
        kernel: gives the results; None for one that does not exist, in whose place the operator
            returns an empty tensor. It raises Unfit, or stumbles, where kernels do not take
            the arguments as they are.
        fit: takes the same where that happened, makes it fit and gives the results, or
            raises a ValueError that says what is wrong.
        fake: takes the same and gives tensors of the same shape, dtype and strides.
    """

    def __init__(self, schema, tensors, kernel, fit, fake):
        _library.define(schema)
        self.name = schema.partition("(")[0]
        names = list(inspect.signature(kernel).parameters)[:tensors]

        def without_none(*arguments):
            found = self.compute(*arguments)
            if isinstance(found, tuple) and type(None) in map(type, found):
                return tuple(nothing(arguments[0]) if t is None else t for t in found)
            return found

        _library.impl(self.name, without_none, "CompositeExplicitAutograd")

        def fake_on_one_device(*arguments):
            given = [(n, t) for n, t in zip(names, arguments, strict=False) if t is not None]
            for name, t in given:
                if t.device != given[0][1].device:
                    first, other = given[0]
                    raise ValueError(f"{name} is on {t.device}, {first} on {other.device}")
            return fake(*arguments)

        torch.library.register_fake(f"evonorm::{self.name}", fake_on_one_device, lib=_library)
        self.tensors, self.kernel, self.fit = tensors, kernel, fit
        self.dispatched = getattr(torch.ops.evonorm, self.name).default
        OPERATORS[self.name] = self

    def __call__(self, *arguments):
        if not is_direct(*arguments[: self.tensors]):
            return self.dispatched(*arguments)
        try:
            return self.kernel(*arguments)
        except _MISFIT:
            pass  # not shown beside what follows, which is for the caller
        return self.fit_or_dispatch(*arguments)

    def fit_or_dispatch(self, *arguments):
        """A call that the kernel has not taken."""
        try:
            return self.fit(*arguments)
        except Unfit:  # of a tensor that the dispatcher opens: one that is left of a transform
            return self.dispatched(*arguments)

    def compute(self, *arguments):
        """What the dispatcher calls."""
        try:
            return self.kernel(*arguments)
        except _MISFIT:
            pass
        return self.fit(*arguments)


class Differentiable(Operator):
    """One with gradients, which are those of its first result; the others are statistics.

    A call gives the first result, or with ``shows_last`` the first and the last. ``direct`` says
    what :func:`is_direct` has said of the call.

    Args:
        backward: ``backward(ctx, dy)`` gives the gradients of the tensors, in their order.
            ``ctx.needs_input_grad`` begins with theirs, ``ctx.saved_tensors`` are the tensors and
            the statistics, ``ctx.options`` the other arguments.
        unsaved: names of tensors that are not among those saved: no gradient depends on them.
    """

    def __init__(self, schema, tensors, kernel, fit, fake, backward, shows_last=False, unsaved=()):
        super().__init__(schema, tensors, kernel, fit, fake)
        self.shows_last = shows_last
        names = list(inspect.signature(kernel).parameters)
        no_gradients = (None,) * len(names)
        saved = itemgetter(*(i for i in range(tensors) if names[i] not in unsaved))

        def keep(ctx, inputs, output):
            statistics = output[1:] if isinstance(output, tuple) else ()
            ctx.save_for_backward(*saved(inputs), *statistics)
            ctx.options = inputs[tensors:]
            ctx.mark_non_differentiable(*statistics)
            ctx.set_materialize_grads(False)

        def gradients(ctx, dy, *_):
            if dy is None:
                return no_gradients
            return *backward(ctx, dy), *no_gradients[tensors:]

        torch.library.register_autograd(
            f"evonorm::{self.name}", gradients, setup_context=keep, lib=_library
        )

        class Function(torch.autograd.Function):
            """Without the statistics among its results, each of which would cost a microsecond."""

            @staticmethod
            def forward(ctx, *arguments):
                *inputs, options = arguments
                ctx.options = options
                try:
                    results = kernel(*inputs, *options)
                except _MISFIT:
                    results = None
                if results is None:
                    results = fit(*inputs, *options)
                if not isinstance(results, tuple):
                    ctx.save_for_backward(*saved(inputs))
                    return results
                ctx.save_for_backward(*saved(inputs), *results[1:])
                if not shows_last:
                    return results[0]
                ctx.set_materialize_grads(False)
                ctx.mark_non_differentiable(results[-1])
                return results[0], results[-1]

            @staticmethod
            def backward(ctx, dy, *_):
                return no_gradients[: tensors + 1] if dy is None else (*backward(ctx, dy), None)

        self.function = Function.apply

    def __call__(self, *arguments, direct=None):
        tensors = arguments[: self.tensors]
        if direct is None:
            direct = is_direct(*tensors)
        if not direct:
            results = self.dispatched(*arguments)
        else:
            if _is_grad_enabled():
                for t in tensors:
                    if t is not None and t.requires_grad:
                        return self.function(*tensors, arguments[self.tensors :])
            results = super().__call__(*arguments)
        if not isinstance(results, tuple):
            return results
        return (results[0], results[-1]) if self.shows_last else results[0]
