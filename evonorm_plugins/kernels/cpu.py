"""The CPU kernels in ``csrc``: what the C functions take and give, as tensors.

Each function takes an ``x`` of ``(N, C, H, W)`` that is not empty and dense in contiguous or
channels_last order, ``dy`` with the dtype and strides of ``x``, and float32 contiguous parameters
and statistics: ``weight`` and ``bias`` ``(C,)`` or ``(N, C)``, ``v`` ``(C,)`` or None, which stands
for ones. Statistics and gradients of parameters are returned in float32.
"""

import ctypes
import functools
from pathlib import Path

import torch

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_KINDS = {"b0": 0, "b1": 1, "b2": 2}
_READ, _FOLD, _WRITE, _PARAMETERS = 1, 2, 4, 8  # steps, as in csrc/driver.h
_SHORT_OF_MEMORY = 1


class _Problem(ctypes.Structure):
    """``problem`` of csrc/evonorm.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "channels", "pixels", "groups")),
        *((name, ctypes.c_int64) for name in ("run", "affine_stride")),
        *((name, ctypes.c_int32) for name in ("kind", "dtype", "channels_last", "centred")),
        *((name, ctypes.c_int32) for name in ("own_batch", "threads", "direct")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "dy", "out", "weight", "bias", "v")),
        *((name, ctypes.c_void_p) for name in ("moments", "sums", "mean", "rstd", "var")),
        *((name, ctypes.c_void_p) for name in ("batch_mean", "batch_var", "group_grad")),
        *((name, ctypes.c_void_p) for name in ("std_grad", "batch_var_grad", "batch_count")),
        *((name, ctypes.c_void_p) for name in ("weight_grad", "bias_grad", "v_grad")),
    ]


@functools.cache
def _load():
    """The library, or in its place why there is none."""
    path = Path(__file__).parent / "_evonorm.so"
    if not path.exists():
        return "the C extension was not built when the package was installed"
    try:
        library = ctypes.CDLL(str(path))
        library.evonorm_problem_size.restype = ctypes.c_int64
        size = library.evonorm_problem_size()
        for formula, steps in (("sample", []), ("batch", [ctypes.c_int]), ("affine", [])):
            for direction in ("forward", "backward"):
                function = getattr(library, f"evonorm_{formula}_{direction}")
                function.argtypes = [ctypes.POINTER(_Problem), *steps]
                function.restype = ctypes.c_int
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error}); install the package again"
    if size != ctypes.sizeof(_Problem):
        return f"{path.name} is of another version of the package; install it again"
    library.evonorm_choose(len(INSTRUCTION_SETS) - 1)
    return library


def computes_on(x):
    """Whether the kernels can be given ``x`` on its device."""
    return x.is_cpu


def missing():
    """Why the kernels cannot run on this machine, or None."""
    library = _load()
    return library if isinstance(library, str) else None


def instruction_set():
    """The one of ``INSTRUCTION_SETS`` in use."""
    return INSTRUCTION_SETS[_load().evonorm_level()]


def use_instruction_set(name):
    """Use ``name`` of ``INSTRUCTION_SETS``, or a lesser one where the processor lacks it."""
    _load().evonorm_choose(INSTRUCTION_SETS.index(name))


def has_openmp():
    """Whether the library was built with OpenMP: without it, it uses one thread."""
    return bool(_load().evonorm_has_openmp())


def _problem(x, weight=None, **fields):
    n, c, h, w = x.shape
    return _Problem(
        samples=n,
        channels=c,
        pixels=h * w,
        affine_stride=c if weight is not None and weight.dim() == 2 else 0,
        dtype=_DTYPES[x.dtype],
        channels_last=not x.is_contiguous(),
        threads=torch.get_num_threads(),
        x=x.data_ptr(),
        weight=_at(weight),
        **fields,
    )


def _at(t):
    return None if t is None else t.data_ptr()


def _call(function, problem, *steps):
    status = function(ctypes.byref(problem), *steps)
    if status == _SHORT_OF_MEMORY:
        shape = problem.samples, problem.channels, problem.pixels
        raise MemoryError(f"no memory for the sums over x of (N, C, H * W) = {shape}")
    if status:
        raise ValueError("the CPU kernels were not given all they need, or a tensor without memory")


def _empty(x, *shape, dtype=torch.float32):
    return x.new_empty(shape, dtype=dtype)


def sample_forward(x, weight, bias, v, groups, eps, centred):
    """The S series: ``(y, mean, rstd)``, the last two ``(N, groups)``; groups divide C.

    ``centred=False`` takes the mean of squares for the variance, and 0 for the mean.
    """
    n = x.shape[0]
    y, mean, rstd = torch.empty_like(x), _empty(x, n, groups), _empty(x, n, groups)
    problem = _problem(
        x,
        weight,
        groups=groups,
        centred=centred,
        eps=eps,
        out=y.data_ptr(),
        bias=bias.data_ptr(),
        v=_at(v),
        mean=mean.data_ptr(),
        rstd=rstd.data_ptr(),
    )
    _call(_load().evonorm_sample_forward, problem)
    return y, mean, rstd


def sample_backward(dy, x, weight, v, mean, rstd, centred):
    """Gradients of x, weight, bias and v (None where there is no v)."""
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    dv = None if v is None else torch.empty_like(v)
    problem = _problem(
        x,
        weight,
        groups=mean.shape[1],
        centred=centred,
        dy=dy.data_ptr(),
        out=dx.data_ptr(),
        v=_at(v),
        mean=mean.data_ptr(),
        rstd=rstd.data_ptr(),
        weight_grad=dweight.data_ptr(),
        bias_grad=dbias.data_ptr(),
        v_grad=_at(dv),
    )
    _call(_load().evonorm_sample_backward, problem)
    return dx, dweight, dbias, dv


def batch_moments(x):
    """Mean and biased variance of every sample's channels, ``(N, C)`` each, float64."""
    n, c, h, w = x.shape
    moments = _empty(x, 2, n, c, dtype=torch.float64)
    problem = _problem(x, centred=True, moments=moments.data_ptr())
    _call(_load().evonorm_batch_forward, problem, _READ)
    return moments[0], moments[1] / (h * w)


def batch_apply(x, weight, bias, v, mean, var, batch_var, kind, eps):
    """The B series with given statistics: y."""
    y = torch.empty_like(x)
    problem = _problem(
        x,
        weight,
        kind=_KINDS[kind],
        eps=eps,
        out=y.data_ptr(),
        bias=bias.data_ptr(),
        v=_at(v),
        mean=mean.data_ptr(),
        var=var.data_ptr(),
        batch_var=batch_var.data_ptr(),
    )
    _call(_load().evonorm_batch_forward, problem, _WRITE)
    return y


def batch_forward(x, weight, bias, v, batch_var, kind, eps):
    """The B series: ``(y, mean, var, batch_mean, batch_var)``.

    mean and var ``(N, C)`` are those of every sample's channels. ``batch_var`` ``(C,)`` None: that
    of x is used and returned with its mean. Otherwise the last two results are empty, and for B1
    and B2 var is the mean of squares and the mean 0, which is right for infinite numbers too.
    """
    n, c = x.shape[:2]
    own = batch_var is None
    y, mean, var = torch.empty_like(x), _empty(x, n, c), _empty(x, n, c)
    new_mean, new_var = _empty(x, c if own else 0), _empty(x, c if own else 0)
    problem = _problem(
        x,
        weight,
        kind=_KINDS[kind],
        centred=own or kind == "b0",
        own_batch=own,
        eps=eps,
        out=y.data_ptr(),
        bias=bias.data_ptr(),
        v=_at(v),
        mean=mean.data_ptr(),
        var=var.data_ptr(),
        batch_mean=new_mean.data_ptr() if own else None,
        batch_var=(new_var if own else batch_var).data_ptr(),
    )
    _call(_load().evonorm_batch_forward, problem, _READ | _FOLD | _WRITE)
    return y, mean, var, new_mean, new_var


def batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps):
    """Gradients of x, weight, bias, v (None but in B0) and batch_var.

    With a ``batch_mean``, ``batch_var`` is that of x, and the gradient of x holds its part.
    """
    dx, dbatch_var = torch.empty_like(x), torch.empty_like(batch_var)
    problem, parameters = _batch_sums(dy, x, weight, v, mean, var, batch_var, kind, eps)
    problem.out, problem.batch_mean = dx.data_ptr(), _at(batch_mean)
    problem.batch_var_grad = dbatch_var.data_ptr()
    _call(_load().evonorm_batch_backward, problem, _READ | _FOLD | _WRITE | _PARAMETERS)
    return dx, *parameters, dbatch_var


def batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps):
    """Gradients of weight, bias, v, every sample's own std or rms ``(N, C)``, and batch_var."""
    dstd, dbatch_var = torch.empty_like(mean), torch.empty_like(batch_var)
    problem, parameters = _batch_sums(dy, x, weight, v, mean, var, batch_var, kind, eps)
    problem.std_grad, problem.batch_var_grad = dstd.data_ptr(), dbatch_var.data_ptr()
    _call(_load().evonorm_batch_backward, problem, _READ | _FOLD | _PARAMETERS)
    return *parameters, dstd, dbatch_var


def batch_input_gradient(
    dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
):
    """Gradient of x from those of the statistics; ``count``: elements behind ``batch_var``."""
    dx = torch.empty_like(x)
    problem = _batch_problem(dy, x, weight, v, mean, var, batch_var, kind, eps)
    problem.out, problem.batch_mean, problem.batch_count = (
        dx.data_ptr(),
        _at(batch_mean),
        _at(count),
    )
    problem.std_grad, problem.batch_var_grad = dstd.data_ptr(), dbatch_var.data_ptr()
    _call(_load().evonorm_batch_backward, problem, _WRITE)
    return dx


def _batch_problem(dy, x, weight, v, mean, var, batch_var, kind, eps):
    return _problem(
        x,
        weight,
        kind=_KINDS[kind],
        eps=eps,
        dy=dy.data_ptr(),
        v=_at(v),
        mean=mean.data_ptr(),
        var=var.data_ptr(),
        batch_var=batch_var.data_ptr(),
    )


def _batch_sums(dy, x, weight, v, mean, var, batch_var, kind, eps):
    """The problem, and what it is to write the gradients of weight, bias and v to."""
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    dv = None if v is None else torch.empty_like(v)
    problem = _batch_problem(dy, x, weight, v, mean, var, batch_var, kind, eps)
    problem.weight_grad, problem.bias_grad = dweight.data_ptr(), dbias.data_ptr()
    problem.v_grad = _at(dv)
    return problem, (dweight, dbias, dv)


def affine_forward(x, weight, bias):
    """``x * weight + bias``."""
    y = torch.empty_like(x)
    problem = _problem(x, weight, out=y.data_ptr(), bias=bias.data_ptr())
    _call(_load().evonorm_affine_forward, problem)
    return y


def affine_backward(dy, x, weight):
    """Gradients of x, weight and bias."""
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    problem = _problem(
        x,
        weight,
        dy=dy.data_ptr(),
        out=dx.data_ptr(),
        weight_grad=dweight.data_ptr(),
        bias_grad=dbias.data_ptr(),
    )
    _call(_load().evonorm_affine_backward, problem)
    return dx, dweight, dbias
