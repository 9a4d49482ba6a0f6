"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter on the CPU."""

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()  # otherwise tests/conftest.py asks for the interpreter
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
kernels = pytest.importorskip("evonorm_plugins.kernels.triton")
plans = pytest.importorskip("evonorm_plugins.kernels.triton.plan")
tiles = pytest.importorskip("evonorm_plugins.kernels.triton.tiles")
formulas = pytest.importorskip("evonorm_plugins.formulas")

DEVICE = "cuda" if HAS_CUDA else "cpu"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
# Thresholds that lead small sizes through every regime: see the top of plan.py.
TINY = {"_HELD": 16, "_TILE": 64, "_UNIT": 4, "_CHUNK_TILES": 1, "_PROGRAMS": 8}
REGIMES = {
    "held": {},
    "fused": {**TINY, "_PROGRAMS": 1},
    "chunks": {**TINY, "_FUSED_PROGRAMS": 10**6},
    "many chunks": {**TINY, "_FUSED_PROGRAMS": 10**6, "_PARTS": 1},
}
SHAPE = (2, 6, 5, 9)  # of 2 groups: 3 channels are no power of two

# numpy's, where numbers are meant to be infinite
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(params=REGIMES)
def regime(request, monkeypatch):
    """Every way to divide the work in turn, in use."""
    for name, value in REGIMES[request.param].items():
        monkeypatch.setattr(plans, name, value)
    plans._choose.cache_clear()
    yield request.param
    plans._choose.cache_clear()


def only(*regimes):
    return pytest.mark.parametrize("regime", regimes, indirect=True)


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Both memory formats in turn."""
    return LAYOUTS[request.param]


@pytest.fixture
def draw_here(draw):
    """``draw`` on the device."""

    def draw_here(shape, layout=torch.contiguous_format, **options):
        arguments, dy = draw(shape, **options)
        arguments = {k: None if t is None else t.to(DEVICE) for k, t in arguments.items()}
        arguments["x"] = arguments["x"].to(memory_format=layout)
        return arguments, dy.to(DEVICE, memory_format=layout)

    return draw_here


def test_regimes_are_those_meant(regime, layout):
    x = torch.empty(SHAPE, device=DEVICE).to(memory_format=layout)
    plan = plans.make_plan(x, 3, 1)
    chunk, chunks = plan.chunk, plan.chunks
    assert plan.fused == (regime in ("held", "fused"))
    assert (chunk == 1) == plan.tile.ONE == (regime == "held")
    assert (chunks > 1) == (chunks * plan.units > 2) == ("chunks" in regime)
    assert plan.merged == (regime == "many chunks")
    units_of_a_group = plans.make_plan(x, 6, 1).tile.SUBS
    assert units_of_a_group == (1 if regime == "held" else 2)


KINDS = ["s0", "s1", "s2", "b0", "b1", "b2", "affine"]
# What merges many parts by itself is of the S series.
CASES = [(k, r) for k in KINDS for r in REGIMES if k.startswith("s") or r != "many chunks"]


@pytest.mark.parametrize(("kind", "regime"), CASES, indirect=["regime"])
def test_formulas(kind, regime, layout, draw_here, assert_as_good_as_torch):
    """y and every gradient; in the B series with the batch's own variance."""
    # Every kernel that reads gamma and beta does so with one for all samples, and one for each.
    conditional = (regime in ("held", "many chunks")) == (layout == torch.channels_last)
    arguments, dy = draw_here(SHAPE, layout, scale=2, shift=0.3, conditional=conditional)
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=2)


@pytest.mark.parametrize("kind", ["b0", "b1", "b2"])
@only("held", "fused", "chunks")
def test_given_variance(kind, regime, draw_here, assert_as_good_as_torch):
    arguments, dy = draw_here((2, 3, 5, 9), batch_var=True)
    assert_as_good_as_torch(kind, arguments, dy, "triton")


@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((3, 8, 4, 8), "contiguous", torch.float16),
        ((5, 8, 7, 1), "channels last", torch.bfloat16),
        ((1, 8, 1, 1), "contiguous", torch.bfloat16),
    ],
    ids=str,
)
def test_half_precision(kind, shape, layout, dtype, draw_here, assert_as_good_as_torch):
    arguments, dy = draw_here(shape, LAYOUTS[layout], dtype=dtype)
    # The interpreter cuts the bits that bfloat16 lacks, GPUs round them.
    slack = 2**-7 if dtype == torch.bfloat16 and not HAS_CUDA else 1e-6
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=4, slack=slack)


def test_one_group(regime, layout, draw_here, assert_as_good_as_torch):
    """Too wide for one unit; its units are of 4, 4 and 2 channels."""
    arguments, dy = draw_here((2, 10, 3, 6), layout)
    assert_as_good_as_torch("s0", arguments, dy, "triton", groups=1)


@pytest.mark.parametrize("numbers", [{"scale": 1e-2, "shift": 1e3}, {"scale": 1e8}, {"scale": 0}])
@pytest.mark.parametrize("kind", ["s0", "s2", "b0", "b1"])
@only("chunks")
def test_hard_numbers(kind, numbers, regime, draw_here, assert_as_good_as_torch):
    arguments, dy = draw_here(SHAPE, **numbers)
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=2, slack=3e-6)


def test_statistics_as_good_as_their_inputs(regime, layout):
    """Far from 0, and with a first pixel, which the pivot depends on, far from the others."""
    x = (torch.randn(SHAPE, dtype=torch.float64) * 1e-2 + 1e3).float()
    x[0, 0, 0, 0] += 100
    x = x.to(DEVICE, memory_format=layout)
    mean, var = kernels.batch_moments(x)
    exact = x.double()
    assert_close(mean, exact.mean((2, 3)))
    assert_close(var, exact.var((2, 3), correction=0))
    one = torch.ones(6, device=DEVICE)
    *_, batch_mean, batch_var = kernels.batch_forward(x, one, one, one, None, "b0", 1e-5)
    assert_close(batch_mean, exact.mean((0, 2, 3)))
    assert_close(batch_var, exact.var((0, 2, 3), correction=0))
    grouped = exact.unflatten(1, (2, 3))
    _, mean, rstd = kernels.sample_forward(x, one, one, one, 2, 1e-5, True)
    assert_close(mean, grouped.mean((2, 3, 4)))
    assert_close(rstd, (grouped.var((2, 3, 4), correction=0) + 1e-5).rsqrt())
    _, mean, rstd = kernels.sample_forward(x, one, one, None, 2, 1e-5, False)
    assert_close(mean, torch.zeros_like(mean))
    assert_close(rstd, (grouped.square().mean((2, 3, 4)) + 1e-5).rsqrt())


def assert_close(actual, expected, rtol=2e-6, atol=1e-7):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["b0", "b1", "b2"])
@only("held", "chunks")
def test_batch_in_two_parts(kind, regime, layout, draw_here):
    """As on two ranks: sums over parts of a batch lead to the gradients of the whole."""
    conditional = kind == "b1"
    arguments, dy = draw_here((3, 6, 5, 7), layout, conditional=conditional)
    x, weight, bias, v = (arguments[k] for k in ("x", "weight", "bias", "v"))
    v = v if kind == "b0" else None

    leaves = [t.double().requires_grad_() for t in (x, weight, bias, v) if t is not None]
    own_var = leaves[0].var((0, 2, 3), correction=0)
    parameters = [*leaves[1:3], own_var, *leaves[3:]]
    expected = getattr(formulas, kind)(leaves[0], *parameters, eps=1e-5)
    expected.backward(dy.double())

    ranks = slice(0, 1), slice(1, 3)
    batch_mean, batch_var = x.double().mean((0, 2, 3)).float(), own_var.detach().float()
    count = torch.tensor(x.numel() / 6, device=DEVICE)
    parts = []
    for rows in ranks:
        affine = [t[rows].contiguous() if conditional else t for t in (weight, bias)]
        mean, var = kernels.batch_moments(x[rows])
        y = kernels.batch_apply(x[rows], *affine, v, mean, var, batch_var, kind, 1e-5)
        assert_close(y, expected[rows].detach(), rtol=1e-5, atol=1e-5)
        given = (dy[rows], x[rows], affine[0], v, mean, var)
        parts.append((given, kernels.batch_reduce(*given, batch_var, kind, 1e-5)))
    dweight, dbias, dv, _, dbatch_var = zip(*(sums for _, sums in parts), strict=True)
    join = torch.cat if conditional else sum
    assert_close(join(dweight), leaves[1].grad, rtol=1e-5, atol=1e-4)
    assert_close(join(dbias), leaves[2].grad, rtol=1e-5, atol=1e-4)
    if v is None:
        assert dv == (None, None)
    else:
        assert_close(sum(dv), leaves[3].grad, rtol=1e-5, atol=1e-4)
    for rows, (given, sums) in zip(ranks, parts, strict=True):
        own = (batch_mean, batch_var, sums[3], sum(dbatch_var), count)
        dx = kernels.batch_input_gradient(*given, *own, kind, 1e-5)
        assert dx.stride() == x[rows].stride()
        assert_close(dx, leaves[0].grad[rows], rtol=1e-5, atol=1e-5)


NAN, INF = float("nan"), float("inf")
PLACES = [("x", NAN), ("x", INF), ("dy", NAN), ("v", NAN), ("v", INF)]
PLACES = [
    (k, *p) for k in ("s0", "s2", "b0", "b1", "b2") for p in PLACES if "v" not in p or "0" in k
]


@pytest.mark.parametrize(("kind", "place", "value"), PLACES)
@only("chunks")
def test_nan_where_torch_has_it(kind, place, value, regime, draw_here, differentiate):
    """In one element of v, or of x or dy, which is in one of several chunks."""
    # With a variance of the batch that is given a bad sample leaves the others as they are.
    arguments, dy = draw_here(SHAPE, batch_var=kind.startswith("b"))
    {"dy": dy, **arguments}[place].view(-1)[3] = value
    plain = differentiate(kind, arguments, dy, "torch", groups=2)
    fused = differentiate(kind, arguments, dy, "triton", groups=2)
    for key, expected in plain.items():
        assert torch.equal(fused[key].isfinite(), expected.isfinite()), key
        # What an infinite v gives may be infinite here and NaN there.
        if place != "v" or value != value:
            assert torch.equal(fused[key].isnan(), expected.isnan()), key
        close = expected.isfinite()
        torch.testing.assert_close(fused[key][close], expected[close], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["s0", "b0"])
@only("chunks")
def test_repeats_bit_by_bit(kind, regime, draw_here, differentiate):
    arguments, dy = draw_here(SHAPE)
    once, again = (differentiate(kind, arguments, dy, "triton", groups=2) for _ in range(2))
    assert all(torch.equal(once[k], again[k]) for k in once)


@triton.jit
def _addresses(out_ptr, C, HW: tl.int64, chunk: tl.int64, chunks, T: tl.constexpr):
    at = tiles.place(C, HW, chunk, chunks, False, T)
    base, offsets, mask = tiles.pixels(at.first, at, T)
    lane = tl.arange(0, T.K)[None, :, None] * T.P + tl.arange(0, T.P)[None, None, :]
    out_ptr += tl.program_id(0) * (T.K * T.P)
    tl.store(out_ptr + lane, tl.where(mask, base + offsets, -1))


@pytest.mark.parametrize("last", [False, True])
def test_offsets_beyond_32_bits(last):
    """Two chunks of two channel blocks, in an image of 2^40 pixels."""
    channels, pixels, chunk = 4, 2**40, 2**38
    constants = {"D": 1, "PAD": 1, "SUBS": 1, "U": 2, "Q": 1, "K": 2, "L": 4, "P": 4}
    constants.update(ONE=False, LAST=last, VEC=1 if last else 16, WIDE=True, FAST=False)
    tile = tiles.Tile(**constants)
    out = torch.zeros(4, 2, 4, dtype=torch.int64, device=DEVICE)
    _addresses[(4,)](out, channels, pixels, chunk // 4, pixels // chunk, T=tile)
    for program, (start, block) in enumerate([(0, 0), (0, 1), (chunk, 0), (chunk, 1)]):
        for k in range(2):
            c, p = block * 2 + k, start + torch.arange(4)
            expected = p * channels + c if last else c * pixels + p
            assert torch.equal(out[program, k].cpu(), expected)


def test_offsets_are_wide_where_a_tile_is():
    for pixels, last, expected in (
        (2**31, False, True),
        (2**20, False, False),
        (2**40, True, False),
    ):
        wide = plans._choose(1, 64, pixels, last, 2, 2, 1, False).tile.WIDE
        assert wide == expected


@pytest.mark.skipif(not HAS_CUDA, reason="2.2 billion elements need a GPU")
def test_more_elements_than_32_bits_count(layout):
    shape = (2, 33, 5800, 5800)
    x = torch.randn(shape, device=DEVICE, dtype=torch.float16).to(memory_format=layout)
    one = torch.ones(33, device=DEVICE)
    y, mean, rstd = kernels.sample_forward(x, one, one, one, 33, 1e-5, True)
    alone = kernels.sample_forward(x[1:], one, one, one, 33, 1e-5, True)[0]
    torch.testing.assert_close(y[1:], alone)
    dx = kernels.sample_backward(y, x, one, one, mean, rstd, True)[0]
    alone = kernels.sample_backward(y[1:], x[1:], one, one, mean[1:], rstd[1:], True)[0]
    torch.testing.assert_close(dx[1:], alone)


def test_aligned_results(draw_here):
    """Compilers rely on 16 bytes; several results share memory, and 7 floats are not 16 bytes."""
    arguments, dy = draw_here((3, 7, 2, 2))
    x, weight, bias, v = (arguments[k] for k in ("x", "weight", "bias", "v"))
    _, *own = kernels.batch_forward(x, weight, bias, v, None, "b0", 0.1)
    results = [*own, *kernels.batch_backward(dy, x, weight, v, *own, "b0", 0.1)]
    assert all(t.data_ptr() % 16 == 0 and t.is_contiguous() for t in results)


def test_unavailable():
    x = torch.empty(1, 1, 1, 1, device=DEVICE)
    assert kernels.unavailable(x) is None
    assert "x is on meta" in kernels.unavailable(x.to("meta"))


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.3.1", "Triton 3.3.1 is older than 3.4"),
        ("3.4.0", None),
        ("3.10.0+git", None),
        (None, "Triton is not installed"),
    ],
)
def test_old_versions_are_refused(version, expected, tmp_path, monkeypatch):
    """They cannot compile the kernels; nor can a folder that happens to be named like Triton."""
    (tmp_path / "__init__.py").write_text(f"__version__ = '{version}'\n")
    spec = types.SimpleNamespace(origin=version and str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert importlib.import_module("evonorm_plugins.kernels")._missing_triton() == expected


def test_few_kernels_for_many_sizes():
    """Of a layer whose input changes its size with every step."""
    variants = set()
    for height in range(100, 200, 3):
        for width in range(120, 260, 7):
            for tensors in (1, 2):
                plan = plans._choose(2, 256, height * width, False, 2, 8, tensors, False)
                variants.add((tensors, plan.tile, plan.fused, str(plan.launch)))
    # 3 powers of two that divide H W; forward and backward.
    assert len(variants) == 6


# A stub of a driver, with which launches end when the kernel has been compiled.
COMPILE = """
import importlib, pkgutil
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

triton.runtime.driver.set_active(Driver())
compiled = {}

def compile_only(self, grid):
    def launch(*args, **kwargs):
        kernel = self.run(*args, grid=grid, warmup=True, **kwargs)
        assert kernel.asm["cubin"]
        compiled.setdefault(kernel.name, set()).add(kernel.hash)
    return launch

KernelInterface.__getitem__ = compile_only
from evonorm_plugins.kernels import triton as kernels

def call(x, groups, kind, conditional=False):
    n, c = x.shape[:2]
    p = torch.empty(c, device="meta")
    affine = torch.empty(n, c, device="meta") if conditional else p
    if kind == "affine":
        kernels.affine_forward(x, affine, affine)
        kernels.affine_backward(x, x, affine)
    elif kind.startswith("s"):
        v = p if kind == "s0" else None
        _, mean, rstd = kernels.sample_forward(x, affine, affine, v, groups, 1e-5, kind != "s2")
        kernels.sample_backward(x, x, affine, v, mean, rstd, kind != "s2")
    else:
        v = p if kind == "b0" else None
        _, *own = kernels.batch_forward(x, affine, affine, v, None, kind, 1e-5)
        kernels.batch_backward(x, x, affine, v, *own, kind, 1e-5)

new = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="meta")
last = torch.channels_last
call(new(2, 64, 14, 14), 32, "s0")
call(new(1, 256, 100, 102, dtype=torch.float32), 32, "s1", conditional=True)
call(new(2, 160, 61, 61, dtype=torch.float16).to(memory_format=last), 1, "s2")
call(new(2, 64, 7, 7), 1, "b0")
call(new(2, 64, 200, 200).to(memory_format=last), 1, "b1")
call(new(2, 64, 9, 9, dtype=torch.float32), 1, "b2")
call(new(2, 64, 9, 9), 1, "affine")
names = (f"{kernels.__name__}.{m.name}" for m in pkgutil.iter_modules(kernels.__path__))
modules = [importlib.import_module(name) for name in names]
expected = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
assert compiled.keys() == expected, compiled.keys() ^ expected

# Sizes alone do not compile anything again.
call(new(1, 256, 100, 100), 32, "s0")
before = {name: len(hashes) for name, hashes in compiled.items()}
call(new(2, 256, 104, 132), 32, "s0")
call(new(3, 256, 140, 96), 32, "s0")
assert before == {name: len(hashes) for name, hashes in compiled.items()}
"""


def test_compiles_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
