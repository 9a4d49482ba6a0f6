"""Checks of the Triton kernels' launches under a stub of a driver: a program, for it stays.

It prints the names of those that fail, and why, as JSON. With an argument it compiles every kernel
instead.
"""

import contextlib
import hashlib
import importlib
import itertools
import json
import pkgutil
import sys
import traceback
import types

import torch
import triton
from triton.compiler import CompiledKernel

from evonorm_plugins.benchmarks import stub

driver = stub.install()

from evonorm_plugins import get_norm_act  # noqa: E402
from evonorm_plugins.kernels import triton as kernels  # noqa: E402
from evonorm_plugins.kernels.sizes import (  # noqa: E402
    read_addresses_in_python,
    read_sizes_in_python,
)
from evonorm_plugins.kernels.triton import entry, launch  # noqa: E402

# Statistics and activation.
GROUPS = {"gn_relu": ("norm", "relu"), "gn_swish": ("norm", "swish"), "frn": ("rms", "tlu")}
KINDS = ("s0", "s1", "s2", *GROUPS, "b0", "b1", "b2", "rs_rej", "affine")
LAST = torch.channels_last


def call(x, groups, kind, *, conditional=False, given=False, offset=0):
    """Forward and backward; parameters that begin ``offset`` elements behind 16 bytes."""
    n, c = x.shape[:2]

    each = {"dtype": torch.float32, "offset": offset}
    weight, bias = (new(n, c, **each) if conditional else new(c, **each) for _ in range(2))
    v = new(c, **each) if kind in ("s0", "b0", "gn_swish", "frn") else None
    if kind == "affine":
        kernels.affine_forward(x, weight, bias)
        kernels.affine_backward(x, x, weight)
    elif kind in GROUPS:
        statistics, act = GROUPS[kind]
        _, own = kernels.group_forward(x, weight, bias, v, statistics, act, groups, 1e-5)
        kernels.group_backward(x, x, weight, bias, v, own, statistics, act)
    elif kind.startswith("s"):
        centred = kind != "s2"
        _, own = kernels.sample_forward(x, weight, bias, v, groups, 1e-5, centred)
        kernels.sample_backward(x, x, weight, v, own, centred)
    else:
        batch_var = new(c, **each) if given else None
        _, mean, var, own_mean, own_var = kernels.batch_forward(
            x, weight, bias, v, batch_var, kind, 1e-5
        )
        batch = (None, batch_var) if given else (own_mean, own_var)
        kernels.batch_backward(x, x, weight, v, mean, var, *batch, kind, 1e-5)
        kernels.batch_moments(x)


def new(*shape, dtype=torch.bfloat16, offset=0):
    """A tensor that begins ``offset`` elements behind 16 bytes."""
    return torch.empty(torch.Size(shape).numel() + offset, dtype=dtype)[offset:].view(shape)


# ---- the compiler ----


def compiles():
    """Every kernel, for sm_90; sizes alone do not compile anything again."""
    call(new(2, 64, 14, 14), 32, "s0")
    call(new(1, 256, 100, 100, dtype=torch.float32), 32, "s0", conditional=True)
    call(new(2, 160, 61, 61, dtype=torch.float16).to(memory_format=LAST), 1, "s2")
    call(new(2, 64, 7, 7), 1, "b0")
    call(new(2, 64, 200, 200).to(memory_format=LAST), 1, "b1")
    call(new(2, 64, 9, 9, dtype=torch.float32), 1, "b2")
    call(new(2, 64, 9, 9), 1, "rs_rej")
    call(new(2, 64, 9, 9), 1, "affine")
    call(new(2, 64, 14, 14), 32, "gn_relu")
    call(new(1, 256, 100, 100, dtype=torch.float32), 32, "gn_swish", conditional=True)
    call(new(2, 64, 200, 200).to(memory_format=LAST), 64, "frn")
    kernels.move_average(torch.ones(64), torch.ones(64), 0.1)
    names = (f"{kernels.__name__}.{m.name}" for m in pkgutil.iter_modules(kernels.__path__))
    modules = [importlib.import_module(name) for name in names]
    expected = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert driver.compiled.keys() == expected, driver.compiled.keys() ^ expected

    before = {name: len(hashes) for name, hashes in driver.compiled.items()}
    call(new(2, 256, 104, 132, dtype=torch.float32), 32, "s0", conditional=True)
    call(new(3, 256, 140, 96, dtype=torch.float32), 32, "s0", conditional=True)
    assert before == {name: len(hashes) for name, hashes in driver.compiled.items()}


# ---- launches, of kernels that are not compiled ----


class Uncompiled(CompiledKernel):
    """What Triton would compile: source, signature, what is known of arguments, and options."""

    run = None
    module = "loaded"  # or older versions would load it

    def __init__(self, src, target, options):
        text = f"{src.hash()} {src.signature} {src.constants} {src.attrs} {options}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.metadata = types.SimpleNamespace(name=src.name, hash=digest, target=target)
        self.packed_metadata, self.function = options["num_warps"], (src.name, driver.device)
        self.run = driver.launcher_cls(src, self.metadata)

    def __del__(self):
        pass

    def launch_metadata(self, *arguments):
        return None


@contextlib.contextmanager
def compared():
    """Every launch beside Triton's own way for the same tensors; yields a tally of the two ways."""
    ways, ours = {"ours": 0, "Triton's": 0}, launch.Launch.__call__

    def twice(self, tensors):
        driver.record = []
        ours(self, tensors)
        self._launch_slowly(tensors)
        once, again = driver.record
        driver.record = None
        is_ours = not any(isinstance(a, torch.Tensor) for a in once.arguments)
        ways["ours" if is_ours else "Triton's"] += 1
        expected = [address(a) for a in again.arguments]
        found = [
            e if e is None and a == 1 else address(a)
            for a, e in zip(once.arguments, expected, strict=True)
        ]
        assert once._replace(arguments=found) == again._replace(arguments=expected)
        assert list(map(type, found)) == list(map(type, expected))

    launch.Launch.__call__ = twice
    try:
        yield ways
    finally:
        launch.Launch.__call__ = ours


def address(argument):
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument


SHAPES = [
    (1, 64, 4, 4),
    (2, 64, 14, 14),
    (3, 12, 1, 1),
    (2, 33, 7, 5),
    (1, 256, 50, 50),
    (2, 96, 61, 67),
    (70, 8, 24, 24),
]


def launches_what_triton_would():
    """Over sizes, dtypes, formats, kinds, and addresses that Triton compiles other kernels for."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    with compared() as ways:
        for shape, dtype, offset in itertools.product(SHAPES, dtypes, (0, 1, 4, 8)):
            first = new(*shape, dtype=dtype, offset=offset)
            n, c, h, w = shape
            last = new(n, h, w, c, dtype=dtype, offset=offset).permute(0, 3, 1, 2)
            for x, kind in itertools.product((first, last), KINDS):
                how = {"conditional": kind in ("s1", "b2"), "given": kind == "b1"}
                for _ in range(2):
                    call(x, 4 if shape[1] % 4 == 0 else 1, kind, offset=offset % 3, **how)
    assert ways["ours"] > ways["Triton's"] > 0, ways


def launches_the_same_without_the_library():
    """Tensors are then looked at in Python."""
    looks = entry.read_sizes, launch.read_addresses
    entry.read_sizes, launch.read_addresses = read_sizes_in_python, read_addresses_in_python
    try:
        with compared() as ways:
            for kind, _ in itertools.product(KINDS, range(2)):
                call(new(2, 64, 14, 14), 4, kind, offset=1, conditional=kind == "s1")
    finally:
        entry.read_sizes, launch.read_addresses = looks
    assert ways["ours"] > 0, ways


def follows_the_device_and_the_stream():
    x = new(2, 64, 14, 14)
    found = []
    for device, stream in [(0, 0), (0, 7), (1, 7), (1, 8), (0, 7), (0, 0), (1, 8)]:
        driver.device, driver.streams[device] = device, stream
        driver.record = []
        call(x, 4, "s0")
        assert {(r.device, r.stream) for r in driver.record} == {(device, stream)}
        found.append(all(isinstance(r.arguments[0], int) for r in driver.record))
    driver.device, driver.streams, driver.record = 0, dict.fromkeys(range(2), 0), None
    # The first time on a device is Triton's.
    assert found == [False, True, False, True, True, True, True], found


def takes_every_value():
    """What kernels are not compiled for: eps, and the stride of gamma."""
    x, one, each = new(2, 64, 14, 14), torch.empty(64), torch.empty(2, 64)
    for eps, weight in itertools.product((1e-5, 1e-3, 1e-5), (one, each, one)):
        driver.record = []
        kernels.sample_forward(x, weight, weight, one, 4, eps, True)
        (found,) = driver.record
        _, _, stride, found_eps, channels, *_ = found.arguments[7:]
        assert (stride, found_eps, channels) == (64 if weight is each else 0, eps, 64)
    driver.record = None


def goes_tritons_way():
    """Where somebody wants to know of launches."""
    x, settings, watched = new(2, 64, 14, 14), triton.knobs.runtime, []
    kernel = importlib.import_module(f"{kernels.__name__}.sample")._sample_forward_kernel

    def ways():
        driver.record = []
        call(x, 4, "s0")
        found = [isinstance(r.arguments[0], torch.Tensor) for r in driver.record]
        driver.record = None
        return found

    ways()
    assert ways() == [False] * 3
    for name in ("launch_enter_hook", "launch_exit_hook"):
        hook = getattr(settings, name)
        if hook is None:  # older versions, where the setting is the function itself
            setattr(settings, name, watched.append)
        else:
            hook.add(watched.append)
        assert ways() == [True] * 3, name
        if hook is None:
            setattr(settings, name, None)
        else:
            hook.remove(watched.append)
    assert ways() == [False] * 3
    kernel.add_pre_run_hook(lambda *arguments, **options: watched.append(arguments))
    assert ways() == [True, False, False]
    assert watched
    kernel.pre_run_hooks.clear()
    is_compiling, torch.compiler.is_compiling = torch.compiler.is_compiling, lambda: True
    assert ways() == [True] * 3
    torch.compiler.is_compiling = is_compiling
    known, launch._PRIVATE = launch._PRIVATE, None
    assert ways() == [True] * 3
    launch._PRIVATE = known
    assert ways() == [False] * 3


def keeps_few():
    """However many sizes, or devices and alignments there are."""
    assert all(0 < find.cache_info().maxsize <= 4096 for find in entry._caches)
    one = torch.empty(64)
    average = importlib.import_module(f"{kernels.__name__}.average")
    found = launch.Launch(average._average_kernel, (1,), (0.1, 64), {"K": 64})
    driver.streams = dict.fromkeys(range(200), 0)
    for driver.device in range(200):
        found((one, one))
        assert 0 < len(found._compiled) <= launch._MOST
    driver.device = 0


LAUNCHED = {  # forward and backward
    ("s0", (1, 64, 4, 4)): (1, 1),  # one part: nothing to add up
    ("s0", (2, 64, 14, 14)): (1, 2),  # held
    ("s0", (64, 256, 28, 28)): (1, 2),  # groups fill the device
    ("s0", (2, 256, 100, 100)): (2, 2),  # chunks
    ("b0", (1, 64, 4, 4)): (2, 2),
    ("b0", (2, 256, 100, 100)): (2, 2),
    ("b0", (128, 256, 28, 28)): (3, 3),  # parts of too many samples
    ("affine", (1, 64, 4, 4)): (1, 1),
    ("affine", (2, 256, 100, 100)): (1, 2),
}


def launches_few_kernels():
    for (kind, shape), expected in LAUNCHED.items():
        x = torch.empty(
            shape,
            dtype=torch.bfloat16,
        )
        one = torch.empty(shape[1])
        driver.launches.clear()
        if kind == "affine":
            kernels.affine_forward(x, one, one)
        elif kind == "s0":
            _, *own = kernels.sample_forward(x, one, one, one, 32, 1e-5, True)
        else:
            _, *own = kernels.batch_forward(x, one, one, one, None, kind, 1e-5)
        forward = driver.launches.total()
        if kind == "affine":
            kernels.affine_backward(x, x, one)
        elif kind == "s0":
            kernels.sample_backward(x, x, one, one, *own, True)
        else:
            kernels.batch_backward(x, x, one, one, *own, kind, 1e-5)
        found = forward, driver.launches.total() - forward
        assert found == expected, (kind, shape, found)


LAUNCHED_BY_LAYERS = {  # forward and backward
    "EvoNormS0": (1, 1),
    "EvoNormB0": (3, 2),  # one more for the moving average
}


def layers_launch_what_kernels_do():
    """Where nobody looks on, in both formats; nothing else computes."""
    for (name, expected), layout in itertools.product(
        LAUNCHED_BY_LAYERS.items(), (torch.contiguous_format, LAST)
    ):
        layer = get_norm_act(name, 64, impl="triton")
        x = torch.randn(1, 64, 4, 4).to(memory_format=layout).requires_grad_()
        driver.launches.clear()
        y = layer(x)
        forward = driver.launches.total()
        y.backward(torch.ones_like(y))
        found = forward, driver.launches.total() - forward
        assert found == expected, (name, layout, found)
        assert x.grad.stride() == y.stride() == x.stride()


CHECKS = (
    launches_what_triton_would,
    launches_the_same_without_the_library,
    follows_the_device_and_the_stream,
    goes_tritons_way,
    takes_every_value,
    keeps_few,
    launches_few_kernels,
    layers_launch_what_kernels_do,
)


def main(names):
    if names == ["compiles"]:
        compiles()
        return
    triton.compiler.compile = lambda src, target=None, options=None, **_: Uncompiled(
        src, target, options
    )
    failed = {}
    for check in CHECKS:
        entry.forget()
        try:
            check()
        except Exception:  # for the test of that name
            failed[check.__name__] = traceback.format_exc()
    print(json.dumps(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
