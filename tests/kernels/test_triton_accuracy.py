"""The Triton kernels against plain torch: on a GPU where there is one, else in the interpreter."""

import dataclasses

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()  # otherwise tests/conftest.py asks for the interpreter
kernels = pytest.importorskip("evonorm_plugins.kernels.triton")
formulas = pytest.importorskip("evonorm_plugins.formulas")

DEVICE = "cuda" if HAS_CUDA else "cpu"
SHAPE = (2, 6, 5, 9)  # of 2 groups: 3 channels are no power of two
FEW = (2, 3, 5, 13)  # where channels are groups of their own: fewer blocks, of several chunks

# numpy's, where numbers are meant to be infinite
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(scope="module", autouse=True)
def fast_interpreter():
    """Without what takes two thirds of the time of Triton's interpreter.

    It adapts Triton's language anew for every call of a function, here once for each module whose
    functions run; and it checks sums and products for overflow, which offsets in such small tensors
    cannot have.
    """
    with pytest.MonkeyPatch.context() as patch:
        try:
            from triton.runtime import interpreter

            adapt, nothing_to_undo = interpreter._patch_lang, interpreter._LangPatchScope
            builder = interpreter.interpreter_builder
            options = dataclasses.replace(builder.options, sanitize_overflow=False)
        except (ImportError, AttributeError, TypeError):  # another Triton, which takes its time
            yield
            return
        scopes = {}

        def adapt_once(function):
            if function.__module__ not in scopes:
                scopes[function.__module__] = adapt(function)
            return nothing_to_undo()

        patch.setattr(interpreter, "_patch_lang", adapt_once)
        patch.setattr(builder, "options", options)
        yield
        for scope in reversed(scopes.values()):
            scope.restore()


GROUPED = ["s0", "s1", "s2", "s2v", "gn", "gn_relu", "gn_silu", "gn_swish", "over_std", "frn"]
KINDS = [*GROUPED, "b0", "b1", "b2", "rs_rej", "affine"]
# Of the activations one of each kind in every regime: the others are a line of a kernel each.
LINES = ["gn", "gn_silu"]
CASES = [
    (k, r) for k in KINDS for r in ("held", "fused", "chunks") if k not in LINES or r == "held"
]
# What merges, or adds up, many parts by itself.
CASES += [(k, "many chunks") for k in KINDS if k != "affine" and k not in LINES]
CASES += [(k, "many samples") for k in ("b0", "b1", "b2", "rs_rej")]


@pytest.mark.parametrize(("kind", "regime"), CASES, indirect=["regime"])
def test_formulas(kind, regime, layout, draw_here, assert_as_good_as_torch):
    """y and every gradient; in the B series with the batch's own variance."""
    # Every kernel that reads gamma and beta does so with one for all samples, and one for each.
    conditional = (regime in ("held", "many chunks")) == (layout == torch.channels_last)
    shape = SHAPE if kind in GROUPED else FEW
    arguments, dy = draw_here(shape, layout, scale=2, shift=0.3, conditional=conditional)
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=2)


@pytest.mark.parametrize("kind", ["b0", "b1", "b2", "rs_rej"])
@pytest.mark.parametrize("regime", ["held", "fused", "chunks"], indirect=True)
def test_given_variance(kind, regime, draw_here, assert_as_good_as_torch):
    arguments, dy = draw_here((2, 3, 5, 9), batch_var=True)
    assert_as_good_as_torch(kind, arguments, dy, "triton")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((3, 8, 4, 8), torch.contiguous_format, torch.float16),
        ((5, 8, 7, 1), torch.channels_last, torch.bfloat16),
        ((1, 8, 1, 1), torch.contiguous_format, torch.bfloat16),
    ],
    ids=str,
)
def test_half_precision(kind, shape, layout, dtype, draw_here, assert_as_good_as_torch):
    arguments, dy = draw_here(shape, layout, dtype=dtype)
    # The interpreter cuts the bits that bfloat16 lacks, GPUs round them.
    slack = 2**-7 if dtype == torch.bfloat16 and not HAS_CUDA else 1e-6
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=4, slack=slack)


@pytest.mark.parametrize("kind", ["s0", "gn_relu"])
def test_one_group(kind, regime, layout, draw_here, assert_as_good_as_torch):
    """Too wide for one unit; its units are of 4, 4 and 2 channels."""
    arguments, dy = draw_here((2, 10, 3, 6), layout)
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=1)


@pytest.mark.parametrize("numbers", [{"scale": 1e-2, "shift": 1e3}, {"scale": 1e8}, {"scale": 0}])
@pytest.mark.parametrize("kind", ["s0", "s2", "gn_swish", "frn", "b0", "b1", "rs_rej"])
@pytest.mark.parametrize("regime", ["chunks"], indirect=True)
def test_hard_numbers(kind, numbers, regime, draw_here, assert_as_good_as_torch):
    arguments, dy = draw_here(SHAPE if kind in GROUPED else FEW, **numbers)
    assert_as_good_as_torch(kind, arguments, dy, "triton", groups=2, slack=3e-6)


def test_statistics_as_good_as_their_inputs(regime, layout):
    """Far from 0, and with a first pixel, which the pivot depends on, far from the others."""
    x = (torch.randn(SHAPE, dtype=torch.float64) * 1e-2 + 1e3).float()
    x[0, 0, 0, 0] += 100
    x = x.to(DEVICE, memory_format=layout)
    few = x[:, :3].contiguous(memory_format=layout)
    mean, var = kernels.batch_moments(few)
    exact = few.double()
    assert_close(mean, exact.mean((2, 3)))
    assert_close(var, exact.var((2, 3), correction=0))
    one = torch.ones(3, device=DEVICE)
    *_, batch_mean, batch_var = kernels.batch_forward(few, one, one, one, None, "b0", 1e-5)
    assert_close(batch_mean, exact.mean((0, 2, 3)))
    assert_close(batch_var, exact.var((0, 2, 3), correction=0))
    grouped, one = x.double().unflatten(1, (2, 3)), torch.ones(6, device=DEVICE)
    mean, rstd = kernels.sample_forward(x, one, one, one, 2, 1e-5, True)[1]
    assert_close(mean, grouped.mean((2, 3, 4)))
    assert_close(rstd, (grouped.var((2, 3, 4), correction=0) + 1e-5).rsqrt())
    mean, rstd = kernels.sample_forward(x, one, one, None, 2, 1e-5, False)[1]
    assert_close(mean, torch.zeros_like(mean))
    assert_close(rstd, (grouped.square().mean((2, 3, 4)) + 1e-5).rsqrt())


def assert_close(actual, expected, rtol=2e-6, atol=1e-7):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["b0", "b1", "b2"])
@pytest.mark.parametrize("regime", ["held", "chunks", "many chunks"], indirect=True)
def test_batch_in_two_parts(kind, regime, layout, draw_here):
    """As on two ranks: sums over parts of a batch lead to the gradients of the whole."""
    conditional = kind == "b1"
    arguments, dy = draw_here((3, 3, 5, 13), layout, conditional=conditional)
    x, weight, bias, v = (arguments[k] for k in ("x", "weight", "bias", "v"))
    v = v if kind == "b0" else None

    leaves = [t.double().requires_grad_() for t in (x, weight, bias, v) if t is not None]
    own_var = leaves[0].var((0, 2, 3), correction=0)
    parameters = [*leaves[1:3], own_var, *leaves[3:]]
    expected = getattr(formulas, kind)(leaves[0], *parameters, eps=1e-5)
    expected.backward(dy.double())

    ranks = slice(0, 1), slice(1, 3)
    batch_mean, batch_var = x.double().mean((0, 2, 3)).float(), own_var.detach().float()
    count = torch.tensor(x.numel() / 3, device=DEVICE)
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
    (k, *p)
    for k in ("s0", "s2", "gn_relu", "gn_swish", "frn", "b0", "b1", "b2", "rs_rej")
    for p in PLACES
    if "v" not in p or k in ("s0", "b0", "gn_swish", "frn")
]


@pytest.mark.parametrize(("kind", "place", "value"), PLACES)
@pytest.mark.parametrize("regime", ["chunks"], indirect=True)
def test_nan_where_torch_has_it(kind, place, value, regime, draw_here, differentiate):
    """In one element of v, or of x or dy, which is in one of several chunks."""
    # With a variance of the batch that is given a bad sample leaves the others as they are.
    shape = SHAPE if kind in GROUPED else FEW
    arguments, dy = draw_here(shape, batch_var=kind not in GROUPED)
    {"dy": dy, **arguments}[place].view(-1)[2] = value
    plain = differentiate(kind, arguments, dy, "torch", groups=2)
    fused = differentiate(kind, arguments, dy, "triton", groups=2)
    for key, expected in plain.items():
        assert torch.equal(fused[key].isfinite(), expected.isfinite()), key
        # What an infinite v gives may be infinite here and NaN there.
        if place != "v" or value != value:
            assert torch.equal(fused[key].isnan(), expected.isnan()), key
        close = expected.isfinite()
        torch.testing.assert_close(fused[key][close], expected[close], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["s0", "gn_swish", "b0"])
@pytest.mark.parametrize("regime", ["chunks"], indirect=True)
def test_repeats_bit_by_bit(kind, regime, draw_here, differentiate):
    arguments, dy = draw_here(SHAPE if kind in GROUPED else FEW)
    once, again = (differentiate(kind, arguments, dy, "triton", groups=2) for _ in range(2))
    assert all(torch.equal(once[k], again[k]) for k in once)
