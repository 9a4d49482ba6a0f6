"""How the functions of this package are called.

What a call needs is found once for its sizes and options, and kept: how the work is divided, what
is launched, and how much memory it takes. A function is written as one that is given
:class:`Sizes` and options, and makes a function of the tensors:

    @entry("xgb")
    def affine_forward(sizes):
        launch = make_plan(sizes, 1, 1, chunked=True).launch(_kernel, ...)

        def forward(x, weight, bias):
            y = torch.empty_like(x)
            launch((x, y, weight, bias))
            return y

        return forward

It is called with tensors, options behind them: ``affine_forward(x, weight, bias)``. The first call
of some sizes takes a tenth of a millisecond more.
"""

import functools

import torch
import triton

from evonorm_plugins.kernels.library import Unfit
from evonorm_plugins.kernels.sizes import Sizes, read_sizes
from evonorm_plugins.kernels.triton.tiles import place

INTERPRETED = not isinstance(place, triton.JITFunction)
TAKES_CPU = INTERPRETED  # tensors of the CPU; so does a stub of a driver, which sets this
_MOST = 4096  # sizes and options of a function, at some 4 kB
_caches = []


def entry(roles):
    """Make a function of tensors, and options behind them, of one that makes it for given sizes.

    ``roles``: what each of the tensors is; see :func:`evonorm_plugins.kernels.sizes.read_sizes`.
    A call raises :class:`Unfit` where one is something else. The device of the tensors is the
    current one meanwhile.
    """
    count = len(roles)

    def of_builder(build):
        @functools.lru_cache(_MOST)
        def find(sizes, *options):
            sizes = Sizes(*sizes)
            if sizes.device < 0 and not TAKES_CPU:
                raise Unfit("the Triton kernels take tensors of a GPU")
            return build(sizes, *options)

        @functools.wraps(build)
        def call(*arguments):
            sizes = read_sizes(roles, *arguments)
            run, device = find(sizes, *arguments[count:]), sizes[0]
            if device < 0 or device == torch.cuda.current_device():
                return run(*arguments[:count])
            with torch.cuda.device(device):
                return run(*arguments[:count])

        _caches.append(find)
        return call

    return of_builder


def forget():
    """Find everything anew."""
    for find in _caches:
        find.cache_clear()


def require(condition):
    """Raise Unfit where sizes or options are not what a function takes."""
    if not condition:
        raise Unfit("sizes or options are not what the kernels take")
