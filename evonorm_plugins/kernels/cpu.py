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
_KINDS = {"s": 0, "b0": 1, "b1": 2, "b2": 3, "affine": 4}
_READ, _FOLD, _WRITE, _PARAMETERS = 1, 2, 4, 8


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
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error})"
    if size != ctypes.sizeof(_Problem):
        return f"{path.name} is of another version of the package; install it again"
    for function in (library.evonorm_forward, library.evonorm_backward):
        function.argtypes, function.restype = [ctypes.POINTER(_Problem), ctypes.c_int], ctypes.c_int
    library.evonorm_choose(len(INSTRUCTION_SETS) - 1)
    return library


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


def _call(function, steps, options, *, x, weight=None, **tensors):
    n, c, h, w = x.shape
    tensors.update(x=x, weight=weight)
    problem = _Problem(
        samples=n,
        channels=c,
        pixels=h * w,
        affine_stride=c if weight is not None and weight.dim() == 2 else 0,
        dtype=_DTYPES[x.dtype],
        channels_last=not x.is_contiguous(),
        threads=torch.get_num_threads(),
        **options,
        **{name: t.data_ptr() for name, t in tensors.items() if t is not None},
    )
    if function(ctypes.byref(problem), steps):
        raise MemoryError(f"no memory for the sums over x of {tuple(x.shape)}")


def _empty(x, *shape, dtype=torch.float32):
    return x.new_empty(shape, dtype=dtype)


def sample_forward(x, weight, bias, v, groups, eps, centred):
    """The S series: ``(y, mean, rstd)``, the last two ``(N, groups)``; groups divide C.

    ``centred=False`` takes the mean of squares for the variance, and 0 for the mean.
    """
    n = x.shape[0]
    y, mean, rstd = torch.empty_like(x), _empty(x, n, groups), _empty(x, n, groups)
    _call(
        _load().evonorm_forward,
        _READ | _FOLD | _WRITE,
        {"kind": _KINDS["s"], "groups": groups, "centred": centred, "eps": eps},
        **{"x": x, "out": y, "weight": weight, "bias": bias, "v": v, "mean": mean, "rstd": rstd},
    )
    return y, mean, rstd


def sample_backward(dy, x, weight, v, mean, rstd, centred):
    """Gradients of x, weight, bias and v (None where there is no v)."""
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    dv = None if v is None else torch.empty_like(v)
    _call(
        _load().evonorm_backward,
        _READ | _FOLD | _WRITE | _PARAMETERS,
        {"kind": _KINDS["s"], "groups": mean.shape[1], "centred": centred},
        **{"x": x, "dy": dy, "out": dx, "weight": weight, "v": v, "mean": mean, "rstd": rstd},
        **{"weight_grad": dweight, "bias_grad": dbias, "v_grad": dv},
    )
    return dx, dweight, dbias, dv


def batch_moments(x):
    """Mean and biased variance of every sample's channels, ``(N, C)`` each, float64."""
    n, c, h, w = x.shape
    moments = _empty(x, 2, n, c, dtype=torch.float64)
    _call(_load().evonorm_forward, _READ, {"kind": 1, "centred": True}, x=x, moments=moments)
    return moments[0], moments[1] / (h * w)


def batch_apply(x, weight, bias, v, mean, var, batch_var, kind, eps):
    """The B series with given statistics: y."""
    y = torch.empty_like(x)
    _call(
        _load().evonorm_forward,
        _WRITE,
        {"kind": _KINDS[kind], "eps": eps},
        **{"x": x, "out": y, "weight": weight, "bias": bias, "v": v},
        **{"mean": mean, "var": var, "batch_var": batch_var},
    )
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
    options = {"kind": _KINDS[kind], "eps": eps, "own_batch": own}
    _call(
        _load().evonorm_forward,
        _READ | _FOLD | _WRITE,
        {**options, "centred": own or kind == "b0"},
        **{"x": x, "out": y, "weight": weight, "bias": bias, "v": v},
        **{"mean": mean, "var": var},
        **{"batch_mean": new_mean if own else None, "batch_var": new_var if own else batch_var},
    )
    return y, mean, var, new_mean, new_var


def batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps):
    """Gradients of x, weight, bias, v (None but in B0) and batch_var.

    With a ``batch_mean``, ``batch_var`` is that of x, and the gradient of x holds its part.
    """
    return _batch_gradients(
        _READ | _FOLD | _WRITE | _PARAMETERS,
        *(dy, x, weight, v, mean, var, batch_mean, batch_var, None, None, None, kind, eps),
    )


def batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps):
    """Gradients of weight, bias, v, every sample's own std or rms ``(N, C)``, and batch_var."""
    n, c = x.shape[:2]
    std_grad = _empty(x, n, c)
    _, *parameters, batch_var_grad = _batch_gradients(
        _READ | _FOLD | _PARAMETERS,
        *(dy, x, weight, v, mean, var, None, batch_var, std_grad, None, None, kind, eps),
    )
    return *parameters, std_grad, batch_var_grad


def batch_input_gradient(
    dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
):
    """Gradient of x from those of the statistics; ``count``: elements behind ``batch_var``."""
    return _batch_gradients(
        _WRITE,
        *(dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps),
    )[0]


def _batch_gradients(
    steps, dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
):
    dx = torch.empty_like(x) if steps & _WRITE else None
    dweight = dbias = dv = None
    if steps & _READ:
        dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
        dv = None if v is None else torch.empty_like(v)
        dbatch_var = _empty(x, x.shape[1])
    _call(
        _load().evonorm_backward,
        steps,
        {"kind": _KINDS[kind], "eps": eps},
        **{"x": x, "dy": dy, "out": dx, "weight": weight, "v": v, "mean": mean, "var": var},
        **{"batch_mean": batch_mean, "batch_var": batch_var, "batch_count": count},
        **{"std_grad": dstd, "batch_var_grad": dbatch_var},
        **{"weight_grad": dweight, "bias_grad": dbias, "v_grad": dv},
    )
    return dx, dweight, dbias, dv, dbatch_var


def affine_forward(x, weight, bias):
    """``x * weight + bias``."""
    y, options = torch.empty_like(x), {"kind": _KINDS["affine"]}
    _call(_load().evonorm_forward, _WRITE, options, x=x, out=y, weight=weight, bias=bias)
    return y


def affine_backward(dy, x, weight):
    """Gradients of x, weight and bias."""
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    _call(
        _load().evonorm_backward,
        _WRITE | _PARAMETERS,
        {"kind": _KINDS["affine"]},
        **{"x": x, "dy": dy, "out": dx, "weight": weight},
        **{"weight_grad": dweight, "bias_grad": dbias},
    )
    return dx, dweight, dbias
