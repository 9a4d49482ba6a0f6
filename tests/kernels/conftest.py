"""What the kernel tests share: all formulas as functions of the same arguments."""

import pytest
import torch

from evonorm_plugins import functional as F
from evonorm_plugins import kernels
from evonorm_plugins.series import series_s

# Statistics and activation of what group_norm_act computes.
GROUP_KINDS = {
    "gn": ("norm", "none"),
    "gn_relu": ("norm", "relu"),
    "gn_silu": ("norm", "silu"),
    "gn_swish": ("norm", "swish"),
    "over_std": ("std", "none"),
    "frn": ("rms", "tlu"),
}
# Activation of what batch_norm_act computes.
BATCH_NORM_KINDS = {"bn": "none", "bn_relu": "relu", "bn_swish": "swish", "bn_tlu": "tlu"}
BATCH_KINDS = ["b0", "b1", "b2", "rs_rej"]
KINDS = ["s0", "s1", "s2", "s2v", *GROUP_KINDS, *BATCH_NORM_KINDS, *BATCH_KINDS, "affine"]
WITH_V = ("s0", "s2v", "b0", "gn_swish", "frn", "bn_swish", "bn_tlu")


def evaluate(kind, arguments, impl, *, groups=4, eps=1e-5):
    """y of a formula; ``arguments`` holds x, weight, bias, v, and batch_var or None for x's own."""
    x, weight, bias = (arguments[k] for k in ("x", "weight", "bias"))
    v = [arguments["v"]] if kind in WITH_V else []
    if kind == "affine":
        return F.channel_affine(x, weight, bias, impl=impl)
    if kind in GROUP_KINDS:
        statistics, act = GROUP_KINDS[kind]
        options = {"statistics": statistics, "act": act, "eps": eps, "impl": impl}
        groups = x.shape[1] if kind == "frn" else groups
        return F.group_norm_act(x, weight, bias, *v, groups=groups, **options)
    if kind in BATCH_NORM_KINDS:
        options = {"act": BATCH_NORM_KINDS[kind], "eps": eps, "impl": impl}
        var = arguments.get("batch_var")
        if var is None:
            return F.batch_norm_act_train(x, weight, bias, *v, **options)[0]
        return F.batch_norm_act(x, var - 1, var, weight, bias, *v, **options)
    if kind == "s2v":  # of layer graphs alone
        return series_s(kind, x, weight, bias, *v, groups, eps, impl)
    function = "rs_rej_layer" if kind == "rs_rej" else f"evonorm_{kind}"
    if kind not in BATCH_KINDS:
        return getattr(F, function)(x, weight, bias, *v, groups=groups, eps=eps, impl=impl)
    if arguments.get("batch_var") is not None:
        return getattr(F, function)(x, weight, bias, *v, arguments["batch_var"], eps=eps, impl=impl)
    return getattr(F, f"{function}_train")(x, weight, bias, *v, eps=eps, impl=impl)[0]


def gradients(kind, arguments, dy, impl, dtype=None, **options):
    """y and the gradient of every argument, by name; in another dtype where one is given."""
    leaves = {
        k: (t if dtype is None else t.to(dtype)).detach().requires_grad_()
        for k, t in arguments.items()
        if t is not None
    }
    y = evaluate(kind, leaves, impl, **options)
    found = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype), allow_unused=True)
    result = {"y": y.detach(), **dict(zip(leaves, found, strict=True))}
    return {k: t for k, t in result.items() if t is not None}


@pytest.fixture(scope="session")
def differentiate():
    """``differentiate(kind, arguments, dy, impl)``: y and all gradients, by name."""
    return gradients


def of_implementation(kind, arguments, dy, impl, **options):
    """Names and :func:`gradients` of ``impl``: on a CPU by every instruction set it has."""
    if impl != "cpu":
        return {impl: gradients(kind, arguments, dy, impl, **options)}
    found = {}
    try:
        for name in kernels.cpu.INSTRUCTION_SETS:
            kernels.cpu.use_instruction_set(name)
            if kernels.cpu.instruction_set() == name:
                found[name] = gradients(kind, arguments, dy, impl, **options)
    finally:
        kernels.cpu.use_instruction_set(kernels.cpu.INSTRUCTION_SETS[-1])
    return found


@pytest.fixture(scope="session")
def differentiate_all():
    """``differentiate_all(kind, arguments, dy, impl)``: the same, by instruction set."""
    return of_implementation


@pytest.fixture(params=KINDS)
def kind(request):
    """Every formula in turn. Those of batch norms have kernels for CPUs alone."""
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def draw():
    """``draw((2, 8, 5, 7))``: arguments of that shape and ``dy``; parameters in float32."""

    def draw(shape, *, dtype=torch.float32, scale=1, shift=0, conditional=False, batch_var=False):
        n, c = shape[:2]
        affine = (n, c) if conditional else (c,)
        arguments = {
            "x": (torch.randn(shape, dtype=torch.float64) * scale + shift).to(dtype),
            "weight": torch.randn(affine),
            "bias": torch.randn(affine),
            "v": torch.randn(c) * 0.5 + 1,
            "batch_var": torch.rand(c) + 0.5 if batch_var else None,
        }
        return arguments, torch.randn(shape).to(dtype)

    return draw


@pytest.fixture
def assert_as_good_as_torch():
    """The rule of accuracy, for y and every gradient: at most twice plain torch's error.

    Both errors are the largest over a tensor, against plain torch in float64 on the same numbers,
    plus ``slack`` of the largest number for those that plain torch happens to get exactly right.
    """

    def check(kind, arguments, dy, impl, *, slack=1e-6, **options):
        exact = gradients(kind, arguments, dy, "torch", torch.float64, **options)
        plain = gradients(kind, arguments, dy, "torch", **options)
        for name, fused in of_implementation(kind, arguments, dy, impl, **options).items():
            assert fused.keys() == plain.keys()
            for key, expected in exact.items():
                assert fused[key].dtype == plain[key].dtype, (name, key)
                largest = expected.abs().max()
                allowed = 2 * (plain[key].double() - expected).abs().max()
                allowed += slack * largest + 1e-30
                error = (fused[key].double() - expected).abs().max()
                text = f"{name}, {key}: {error:.2e}, {allowed:.2e} allowed, of {largest:.2e}"
                assert error <= allowed, text

    return check


# ---- Triton ----

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there in Triton's interpreter
# Thresholds that lead small sizes through every regime: see the top of plan.py.
TINY = {"_HELD": 16, "_TILE": 64, "_UNIT": 4, "_CHUNK_TILES": 1, "_PROGRAMS": 8}
REGIMES = {
    "held": {},
    "fused": {**TINY, "_PROGRAMS": 1},
    "chunks": {**TINY, "_FUSED_PROGRAMS": 10**6},
    "many chunks": {**TINY, "_FUSED_PROGRAMS": 10**6, "_PARTS": 1},
    "many samples": {**TINY, "_FUSED_PROGRAMS": 10**6, "_AGAIN_BYTES": 0},
}


@pytest.fixture(params=REGIMES)
def regime(request, monkeypatch):
    """Every way to divide the work in turn, in use."""
    plans = pytest.importorskip("evonorm_plugins.kernels.triton.plan")
    entry = pytest.importorskip("evonorm_plugins.kernels.triton.entry")
    for name, value in REGIMES[request.param].items():
        monkeypatch.setattr(plans, name, value)
    entry.forget()
    yield request.param
    entry.forget()


@pytest.fixture(params=["contiguous", "channels last"])
def layout(request):
    """Both memory formats in turn."""
    return torch.channels_last if request.param == "channels last" else torch.contiguous_format


@pytest.fixture
def draw_here(draw):
    """``draw`` on the device."""

    def draw_here(shape, layout=torch.contiguous_format, **options):
        arguments, dy = draw(shape, **options)
        arguments = {k: None if t is None else t.to(DEVICE) for k, t in arguments.items()}
        arguments["x"] = arguments["x"].to(memory_format=layout)
        return arguments, dy.to(DEVICE, memory_format=layout)

    return draw_here
