"""The CPU kernels in ``csrc``: what the C functions take and give, as tensors.

Each function takes an ``x`` of ``(N, C, H, W)`` that is not empty and dense in contiguous or
channels_last order, ``dy`` with the dtype and strides of ``x``, and float32 contiguous parameters
and statistics: ``weight`` and ``bias`` ``(C,)`` or ``(N, C)``, ``v`` ``(C,)`` or None, which stands
for ones. Statistics and gradients of parameters are returned in float32.

A new pair of kernels: a C file in ``csrc`` with its two functions of a ``problem``, as affine.c (named
in STEMS of setup.py); for each function a line of ENTRIES in csrc/module.c, with the fields of
``problem`` that Python gives, in order; both ``INTERFACE`` raised; and here a function that makes the
results and calls ``_library.NAME`` with just these arguments: addresses (``data_ptr()``) or None,
numbers, flags.
"""

import importlib
from types import ModuleType

import torch

_NAME = "evonorm_plugins.kernels._evonorm"
# Of csrc/module.c: raised with every change of what an entry takes.
_INTERFACE = 1
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_KINDS = {"b0": 0, "b1": 1, "b2": 2}


def _load() -> ModuleType | str:
    """The library, or in its place why there is none."""
    if importlib.util.find_spec(_NAME) is None:
        return "the C extension was not built when the package was installed"
    try:
        library = importlib.import_module(_NAME)
    except ImportError as error:
        return f"_evonorm cannot be loaded ({error}); install the package again"
    if getattr(library, "INTERFACE", None) != _INTERFACE:
        return "_evonorm is of another version of the package; install it again"
    library.choose(len(INSTRUCTION_SETS) - 1)
    return library


_library = _load()


def computes_on(x):
    """Whether the kernels can be given ``x`` on its device."""
    return x.is_cpu


def missing():
    """Why the kernels cannot run on this machine, or None."""
    return _library if isinstance(_library, str) else None


def instruction_set():
    """The one of ``INSTRUCTION_SETS`` in use."""
    return INSTRUCTION_SETS[_library.level()]


def use_instruction_set(name):
    """Use ``name`` of ``INSTRUCTION_SETS``, or a lesser one where the processor lacks it."""
    _library.choose(INSTRUCTION_SETS.index(name))


def has_openmp():
    """Whether the library was built with OpenMP: without it, it uses one thread."""
    return bool(_library.HAS_OPENMP)


def _of(x):
    """``COMMON`` of csrc/module.c."""
    threads = torch.get_num_threads()
    return x.shape, _DTYPES[x.dtype], not x.is_contiguous(), threads, x.data_ptr()


def _gamma(weight, v):
    """``GAMMA`` of csrc/module.c, and v."""
    return weight.dim() == 2, weight.data_ptr(), None if v is None else v.data_ptr()


def _of_batch(kind, eps, mean, var, batch_mean, batch_var):
    """``OF_BATCH`` of csrc/module.c."""
    batch_mean = None if batch_mean is None else batch_mean.data_ptr()
    return _KINDS[kind], eps, mean.data_ptr(), var.data_ptr(), batch_mean, batch_var.data_ptr()


def _empty(x, *shape, dtype=torch.float32):
    return x.new_empty(shape, dtype=dtype)


def _gradients(weight, v):
    """Of weight, bias and v, and their addresses."""
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    if v is None:
        return (dweight, dbias, None), (dweight.data_ptr(), dbias.data_ptr(), None)
    dv = torch.empty_like(v)
    return (dweight, dbias, dv), (dweight.data_ptr(), dbias.data_ptr(), dv.data_ptr())


def sample_forward(x, weight, bias, v, groups, eps, centred):
    """The S series: ``(y, mean, rstd)``, the last two ``(N, groups)``; groups divide C.

    ``centred=False`` takes the mean of squares for the variance, and 0 for the mean.
    """
    n = x.shape[0]
    y, mean, rstd = torch.empty_like(x), _empty(x, n, groups), _empty(x, n, groups)
    grouped = groups, centred, mean.data_ptr(), rstd.data_ptr()
    _library.sample_forward(
        *_of(x), *_gamma(weight, v), *grouped, eps, bias.data_ptr(), y.data_ptr()
    )
    return y, mean, rstd


def sample_backward(dy, x, weight, v, mean, rstd, centred):
    """Gradients of x, weight, bias and v (None where there is no v)."""
    dx = torch.empty_like(x)
    parameters, addresses = _gradients(weight, v)
    grouped = mean.shape[1], centred, mean.data_ptr(), rstd.data_ptr()
    _library.sample_backward(
        *_of(x), *_gamma(weight, v), *grouped, dy.data_ptr(), dx.data_ptr(), *addresses
    )
    return dx, *parameters


def batch_moments(x):
    """Mean and biased variance of every sample's channels, ``(N, C)`` each, float64."""
    n, c, h, w = x.shape
    moments = _empty(x, 2, n, c, dtype=torch.float64)
    _library.batch_moments(*_of(x), True, moments.data_ptr())
    return moments[0], moments[1] / (h * w)


def batch_apply(x, weight, bias, v, mean, var, batch_var, kind, eps):
    """The B series with given statistics: y."""
    y = torch.empty_like(x)
    given = _of_batch(kind, eps, mean, var, None, batch_var)
    _library.batch_apply(*_of(x), *_gamma(weight, v), *given, bias.data_ptr(), y.data_ptr())
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
    used = (new_mean, new_var) if own else (None, batch_var)
    _library.batch_forward(
        *(*_of(x), *_gamma(weight, v), *_of_batch(kind, eps, mean, var, *used)),
        *(bias.data_ptr(), y.data_ptr(), own or kind == "b0", own),
    )
    return y, mean, var, new_mean, new_var


def batch_backward(dy, x, weight, v, mean, var, batch_mean, batch_var, kind, eps):
    """Gradients of x, weight, bias, v (None but in B0) and batch_var.

    With a ``batch_mean``, ``batch_var`` is that of x, and the gradient of x holds its part.
    """
    dx, dbatch_var = torch.empty_like(x), torch.empty_like(batch_var)
    parameters, addresses = _gradients(weight, v)
    _library.batch_backward(
        *(*_of(x), *_gamma(weight, v)),
        *_of_batch(kind, eps, mean, var, batch_mean, batch_var),
        *(dy.data_ptr(), dx.data_ptr(), *addresses, dbatch_var.data_ptr()),
    )
    return dx, *parameters, dbatch_var


def batch_reduce(dy, x, weight, v, mean, var, batch_var, kind, eps):
    """Gradients of weight, bias, v, every sample's own std or rms ``(N, C)``, and batch_var."""
    dstd, dbatch_var = torch.empty_like(mean), torch.empty_like(batch_var)
    parameters, addresses = _gradients(weight, v)
    _library.batch_reduce(
        *(*_of(x), *_gamma(weight, v), *_of_batch(kind, eps, mean, var, None, batch_var)),
        *(dy.data_ptr(), *addresses, dstd.data_ptr(), dbatch_var.data_ptr()),
    )
    return *parameters, dstd, dbatch_var


def batch_input_gradient(
    dy, x, weight, v, mean, var, batch_mean, batch_var, dstd, dbatch_var, count, kind, eps
):
    """Gradient of x from those of the statistics; ``count``: elements behind ``batch_var``."""
    dx = torch.empty_like(x)
    _library.batch_input_gradient(
        *(*_of(x), *_gamma(weight, v)),
        *_of_batch(kind, eps, mean, var, batch_mean, batch_var),
        *(dy.data_ptr(), dx.data_ptr(), dstd.data_ptr(), dbatch_var.data_ptr()),
        None if count is None else count.data_ptr(),
    )
    return dx


def affine_forward(x, weight, bias):
    """``x * weight + bias``."""
    y = torch.empty_like(x)
    gamma = weight.dim() == 2, weight.data_ptr()
    _library.affine_forward(*_of(x), *gamma, bias.data_ptr(), y.data_ptr())
    return y


def affine_backward(dy, x, weight):
    """Gradients of x, weight and bias."""
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    gamma = weight.dim() == 2, weight.data_ptr()
    addresses = dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr()
    _library.affine_backward(*_of(x), *gamma, dy.data_ptr(), *addresses)
    return dx, dweight, dbias


def move_average(average, value, momentum):
    """``average`` ``(C,)`` moved by the share ``momentum`` towards ``value``, where that is finite.

    In place; autograd is told by the caller.
    """
    _library.move_average(average.data_ptr(), value.data_ptr(), average.numel(), momentum)
