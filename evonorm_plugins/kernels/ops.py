"""The kernels as operators ``torch.ops.evonorm.*`` with gradients of every order.

Gradients of first order are fused kernels; those of higher order come from the plain formulas. The
statistics that the operators return beside ``y`` are what the backward pass needs besides ``x``;
they have no gradient.

``x`` may be empty and of any strides: here it is made dense, its parameters float32.
"""

import torch

from evonorm_plugins import formulas, kernels
from evonorm_plugins.modes import records_gradient
from evonorm_plugins.statistics import (
    AllReduceSum,
    batch_variance,
    gather_moments,
    merge_moments,
)

_library = torch.library.Library("evonorm", "DEF")
_library.define(
    "sample(Tensor x, Tensor weight, Tensor bias, Tensor? v, str kind, int groups, float eps, "
    "str impl) -> (Tensor y, Tensor mean, Tensor rstd)"
)
_library.define(
    "sample_backward(Tensor dy, Tensor x, Tensor weight, Tensor? v, Tensor mean, Tensor rstd, "
    "str kind, str impl) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dv)"
)
_library.define(
    "batch(Tensor x, Tensor weight, Tensor bias, Tensor? v, Tensor? batch_var, str kind, "
    "float eps, str impl) -> "
    "(Tensor y, Tensor mean, Tensor var, Tensor batch_mean, Tensor new_batch_var)"
)
_library.define(
    "batch_backward(Tensor dy, Tensor x, Tensor weight, Tensor? v, Tensor mean, Tensor var, "
    "Tensor? batch_mean, Tensor batch_var, str kind, float eps, str impl) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dv, Tensor dbatch_var)"
)
_library.define("affine(Tensor x, Tensor weight, Tensor bias, str impl) -> Tensor")
_library.define(
    "affine_backward(Tensor dy, Tensor x, Tensor weight, str impl) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias)"
)


def sample(x, weight, bias, v, kind, groups, eps, impl):
    """The S series: y. ``kind`` is "s0", "s1" or "s2"; v None in the latter two."""
    return _call("sample", x, weight, bias, v, kind, groups, eps, impl)[0]


def batch(x, weight, bias, v, batch_var, kind, eps, impl):
    """The B series: ``(y, batch_var)``. ``kind`` is "b0", "b1" or "b2"; v None in the latter two.

    ``batch_var`` None: the variance of x over batch and space, NaN where x is empty.
    """
    result = _call("batch", x, weight, bias, v, batch_var, kind, eps, impl)
    return result[0], result[4]


def batch_of_group(x, weight, bias, v, group, kind, eps, impl):
    """The B series with the variance of all ranks of a process group: ``(y, batch_var)``."""
    return _BatchOfGroup.apply(x, weight, bias, v, group, kind, eps, impl)


def affine(x, weight, bias, impl):
    """``x * weight + bias``."""
    return _call("affine", x, weight, bias, impl)


# ---- calls ----

_kernels, _functions = {}, {}  # by the name of the operator, filled at the end of this file


def _call(name, *arguments):
    """The operator; in plain eager mode past the dispatcher.

    Its way through Python and back takes longer than the kernel does for a small tensor.
    """
    if not _is_plain(arguments[0]):
        return getattr(torch.ops.evonorm, name)(*arguments)
    return _evaluate(_kernels[name], _functions[name], arguments)


def _call_below_autograd(name, *arguments):
    if _is_plain(arguments[0]):
        return _kernels[name](*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.evonorm, name)(*arguments)


def _is_plain(x):
    """Whether no compiler, transform, mode or profiler has a say in what operators do."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.autograd._profiler_enabled()
    )


def _evaluate(kernel, function, arguments):
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    return (function.apply if records_gradient(*tensors) else kernel)(*arguments)


# ---- arguments of the kernels ----


def _format(x):
    last = torch.channels_last
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


def _dense(x, *like):
    """``x`` in a dense format, and the others in the same."""
    memory_format = _format(x)
    return [t.contiguous(memory_format=memory_format) for t in (x, *like)]


def _parameters(x, weight, bias=None, v=None, batch_var=None):
    """Checked, for the kernels would read what lies beside them, and in float32."""
    n, c = x.shape[:2]
    shape = weight.shape
    if shape not in ((c,), (n, c)) or (bias is not None and bias.shape != shape):
        raise ValueError(
            f"weight of {tuple(shape)} and bias of {None if bias is None else tuple(bias.shape)} "
            f"are not both ({c},) or ({n}, {c}), for x of {tuple(x.shape)}"
        )
    for name, p in (("v", v), ("batch_var", batch_var)):
        if p is not None and p.shape != (c,):
            raise ValueError(f"{name} of {tuple(p.shape)} is not ({c},), for x of {tuple(x.shape)}")
    given = (weight, bias, v, batch_var)
    for p in given:
        if p is not None and p.device != x.device:
            raise ValueError(f"a parameter is on {p.device}, x on {x.device}")
    return [None if p is None else p.float().contiguous() for p in given]


def _sample_forward(x, weight, bias, v, kind, groups, eps, impl):
    p, b, v, _ = _parameters(x, weight, bias, v)
    (x,) = _dense(x)
    if x.numel() == 0:
        return torch.empty_like(x), *_zeros(x, 2, x.shape[0], groups)
    return kernels.backend(impl).sample_forward(x, p, b, v, groups, eps, kind != "s2")


def _sample_backward(dy, x, weight, v, mean, rstd, kind, impl):
    p, _, v32, _ = _parameters(x, weight, v=v)
    x, dy = _dense(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), *_no_gradients(weight, v)
    dx, *rest = kernels.backend(impl).sample_backward(dy, x, p, v32, mean, rstd, kind != "s2")
    return dx, *_as_given(rest, weight, v)


def _batch_forward(x, weight, bias, v, batch_var, kind, eps, impl):
    p, b, v, given = _parameters(x, weight, bias, v, batch_var)
    (x,) = _dense(x)
    if x.numel() == 0:
        n, c = x.shape[:2]
        own = c if batch_var is None else 0
        nan = torch.full((own,), float("nan"), device=x.device)
        return torch.empty_like(x), *_zeros(x, 2, n, c), *_zeros(x, 1, own), nan
    return kernels.backend(impl).batch_forward(x, p, b, v, given, kind, eps)


def _batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps, impl):
    p, _, v32, given = _parameters(x, weight, None, v, batch_var)
    x, dy = _dense(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), *_no_gradients(weight, v), torch.zeros_like(batch_var)
    dx, *rest, dbatch_var = kernels.backend(impl).batch_backward(
        dy, x, p, v32, mean, var, batch_mean, given, kind, eps
    )
    return dx, *_as_given(rest, weight, v), dbatch_var.to(batch_var.dtype)


def _affine_forward(x, weight, bias, impl):
    weight, bias, _, _ = _parameters(x, weight, bias)
    (x,) = _dense(x)
    if x.numel() == 0:
        return torch.empty_like(x)
    return kernels.backend(impl).affine_forward(x, weight, bias)


def _affine_backward(dy, x, weight, impl):
    p, *_ = _parameters(x, weight)
    x, dy = _dense(x, dy)
    if x.numel() == 0:
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    dx, dweight, dbias = kernels.backend(impl).affine_backward(dy, x, p)
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _zeros(x, number, *shape):
    return [torch.zeros(shape, device=x.device) for _ in range(number)]


def _no_gradients(weight, v):
    return [*(torch.zeros_like(weight) for _ in range(2)), _v_like(weight, v, torch.zeros_like)]


def _v_like(weight, v, make):
    # An operator cannot return None.
    return weight.new_empty(0) if v is None else make(v)


def _as_given(gradients, weight, v):
    dweight, dbias, dv = gradients
    dv = weight.new_empty(0) if dv is None else dv.to(v.dtype)
    return dweight.to(weight.dtype), dbias.to(weight.dtype), dv


# ---- what a compiler is told: shapes, dtypes and strides ----


def _fake_sample(x, weight, bias, v, kind, groups, eps, impl):
    statistics = [x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(x, memory_format=_format(x)), *statistics


def _fake_sample_backward(dy, x, weight, v, mean, rstd, kind, impl):
    dx = torch.empty_like(x, memory_format=_format(x))
    parameters = [torch.empty_like(weight, memory_format=torch.contiguous_format) for _ in range(2)]
    return dx, *parameters, _v_like(weight, v, torch.empty_like)


def _fake_batch(x, weight, bias, v, batch_var, kind, eps, impl):
    n, c = x.shape[:2]
    own = c if batch_var is None else 0
    shapes = ((n, c), (n, c), (own,), (own,))
    statistics = [x.new_empty(shape, dtype=torch.float32) for shape in shapes]
    return torch.empty_like(x, memory_format=_format(x)), *statistics


def _fake_batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps, impl):
    gradients = _fake_sample_backward(dy, x, weight, v, mean, var, kind, impl)
    return *gradients, torch.empty_like(batch_var)


def _fake_affine(x, weight, bias, impl):
    return torch.empty_like(x, memory_format=_format(x))


def _fake_affine_backward(dy, x, weight, impl):
    return _fake_sample_backward(dy, x, weight, None, None, None, None, impl)[:3]


# ---- gradients ----


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, v, kind, groups, eps, impl):
        y, mean, rstd = _call_below_autograd("sample", x, weight, bias, v, kind, groups, eps, impl)
        ctx.save_for_backward(x, weight, bias, v, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.options = kind, groups, eps, impl
        return y, mean, rstd

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, bias, v, mean, rstd = ctx.saved_tensors
        kind, groups, eps, impl = ctx.options
        if torch.is_grad_enabled():

            def formula(x, weight, bias, v):
                parameters = [weight, bias] + ([] if v is None else [v])
                return getattr(formulas, kind)(x, *parameters, groups=groups, eps=eps)

            needed = ctx.needs_input_grad[:4]
            gradients = formulas.gradients(formula, (x, weight, bias, v), dy, needed)
        else:
            gradients = _call_below_autograd(
                "sample_backward", dy, x, weight, v, mean, rstd, kind, impl
            )
        dx, dweight, dbias, dv = gradients
        return dx, dweight, dbias, None if v is None else dv, None, None, None, None


def _batch_formula(kind, eps, group):
    def formula(x, weight, bias, v, batch_var):
        if batch_var is None:
            var, count = batch_variance(x, group=group)
            # Without elements anything will do but NaN.
            batch_var = torch.where(count > 0, var, 1)
        parameters = [weight, bias, batch_var] + ([] if v is None else [v])
        return getattr(formulas, kind)(x, *parameters, eps=eps)

    return formula


class _Batch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, v, batch_var, kind, eps, impl):
        y, mean, var, *own = _call_below_autograd(
            "batch", x, weight, bias, v, batch_var, kind, eps, impl
        )
        ctx.save_for_backward(x, weight, bias, v, batch_var, mean, var, *own)
        ctx.mark_non_differentiable(mean, var, *own)
        ctx.options = kind, eps, impl
        return y, mean, var, *own

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, bias, v, batch_var, mean, var, own_mean, own_var = ctx.saved_tensors
        kind, eps, impl = ctx.options
        if torch.is_grad_enabled():
            formula, needed = _batch_formula(kind, eps, None), ctx.needs_input_grad[:5]
            gradients = formulas.gradients(formula, (x, weight, bias, v, batch_var), dy, needed)
        else:
            used = (own_mean, own_var) if batch_var is None else (None, batch_var)
            gradients = _call_below_autograd(
                "batch_backward", dy, x, weight, v, mean, var, *used, kind, eps, impl
            )
        dx, dweight, dbias, dv, dbatch_var = gradients
        dv = None if v is None else dv
        return dx, dweight, dbias, dv, None if batch_var is None else dbatch_var, None, None, None


class _BatchOfGroup(torch.autograd.Function):
    """One collective forward and one backward, which every rank enters, samples or not."""

    @staticmethod
    def forward(ctx, x, weight, bias, v, group, kind, eps, impl):
        module = kernels.backend(impl)
        p, b, v32, _ = _parameters(x, weight, bias, v)
        (dense,) = _dense(x)
        n, c = x.shape[:2]
        pixels = x.shape[2] * x.shape[3]
        mean, var = module.batch_moments(dense) if x.numel() else _zeros(x, 2, n, c)
        # float64 on every rank: with mean 1e3 and std 1e-2, rounded means would be too far off.
        mean, var = mean.double(), var.double()
        counts = mean.new_full((n,), pixels)
        merged = gather_moments(*merge_moments(counts, mean, var * pixels), group)
        count, batch_mean, m2 = (t.float() for t in merge_moments(*merged))
        batch_var = m2 / count
        mean, var = mean.float(), var.float()
        y = torch.empty_like(dense)
        if x.numel():
            y = module.batch_apply(dense, p, b, v32, mean, var, batch_var, kind, eps)
        ctx.save_for_backward(x, weight, bias, v, mean, var, batch_mean, batch_var, count)
        ctx.mark_non_differentiable(batch_var)
        ctx.options = group, kind, eps, impl
        return y, batch_var

    @staticmethod
    def backward(ctx, dy, _):
        x, weight, bias, v, mean, var, batch_mean, batch_var, count = ctx.saved_tensors
        group, kind, eps, impl = ctx.options
        if torch.is_grad_enabled():
            formula, needed = _batch_formula(kind, eps, group), [*ctx.needs_input_grad[:4], False]
            gradients = formulas.gradients(formula, (x, weight, bias, v, None), dy, needed)
            return *gradients[:4], None, None, None, None
        module = kernels.backend(impl)
        p, _, v32, _ = _parameters(x, weight, v=v)
        dense, dy = _dense(x, dy)
        arguments = dy, dense, p, v32, mean, var
        if x.numel():
            *parameters, dstd, dbatch_var = module.batch_reduce(*arguments, batch_var, kind, eps)
            parameters = _as_given(parameters, weight, v)
        else:
            parameters, dbatch_var = _no_gradients(weight, v), torch.zeros_like(batch_var)
        dbatch_var = AllReduceSum.apply(dbatch_var, group)
        dx = torch.empty_like(dense)
        if x.numel():
            dx = module.batch_input_gradient(
                *arguments, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
            )
        dweight, dbias, dv = parameters
        return dx, dweight, dbias, None if v is None else dv, None, None, None, None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, impl):
        y = _call_below_autograd("affine", x, weight, bias, impl)
        ctx.save_for_backward(x, weight, bias)
        ctx.impl = impl
        return y

    @staticmethod
    def backward(ctx, dy):
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[:3]
            return *formulas.gradients(formulas.affine, tensors, dy, needed), None
        x, weight, _ = tensors
        return *_call_below_autograd("affine_backward", dy, x, weight, ctx.impl), None


# ---- registration ----


def _register(name, kernel, fake, function=None):
    _kernels[name] = kernel
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"evonorm::{name}", fake, lib=_library)
    if function is None:
        return
    _functions[name] = function
    operator = getattr(torch.ops.evonorm, name).default

    def below_autograd(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def as_autograd_sees_it(*arguments):
        return _evaluate(below_autograd, function, arguments)

    _library.impl(name, as_autograd_sees_it, "Autograd")


_register("sample", _sample_forward, _fake_sample, _Sample)
_register("sample_backward", _sample_backward, _fake_sample_backward)
_register("batch", _batch_forward, _fake_batch, _Batch)
_register("batch_backward", _batch_backward, _fake_batch_backward)
_register("affine", _affine_forward, _fake_affine, _Affine)
_register("affine_backward", _affine_backward, _fake_affine_backward)
