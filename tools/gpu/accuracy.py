"""Every layer against plain torch in float64: at most twice the error of plain torch.

The same rule as in the tests of kernels, for y, every gradient and what is kept as a moving
statistic. Layers are named as in the registry.
"""

import itertools

import torch

from evonorm_plugins.benchmarks import LAYERS
from evonorm_plugins.benchmarks.layers import FORMATS
from evonorm_plugins.registry import get_norm_act

AFFINE = "EvoNormS0(apply_act=False)"
NAMES = (*LAYERS, AFFINE)
# Through every way to divide the work, odd sizes, few and many channels.
SHAPES = [
    (2, 64, 14, 14),
    (1, 256, 100, 152),
    (3, 33, 7, 5),
    (70, 8, 24, 24),
    (2, 2048, 7, 7),
    (8, 96, 61, 67),
    (3, 12, 1, 1),
    (16, 512, 14, 14),
    (2, 64, 400, 608),
]
DRY_SHAPES = [(2, 6, 3, 5)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VALUES = {
    "far from 0": {"scale": 1e-2, "shift": 1e3},
    "huge": {"scale": 1e8},
    "constant": {"scale": 0},
}
SLACK = 1e-6  # of the largest number, for those that plain torch happens to get exactly right
SLACK_OF_VALUES = 3e-6
# Triton's interpreter cuts the bits that bfloat16 lacks, GPUs round them.
SLACK_OF_CUT_BITS = 2**-7


def run_accuracy(section):
    shapes = DRY_SHAPES if section.dry_run else SHAPES
    cases = [
        (name, shape, dtype, layout, {})
        for shape, dtype, layout in itertools.product(shapes, DTYPES, FORMATS)
        for name in NAMES
    ]
    if section.dry_run:  # one dtype and format each
        kept = itertools.cycle([0, 3, 4])
        cases = [cases[next(kept) * len(NAMES) + k] for k in range(len(NAMES))]
    some = dict(list(VALUES.items())[:1]) if section.dry_run else VALUES
    for name, values in itertools.product(NAMES[:1] if section.dry_run else NAMES, some):
        cases.append((name, shapes[0], torch.float32, "contiguous", {"values": values}))
    for name in NAMES[:1] if section.dry_run else NAMES:
        cases.append((name, shapes[0], torch.float32, "channels_last", {"per_sample": True}))
    for case in section.mine(cases):
        section.check(named("accuracy", *case), as_good_as_torch, section.device, *case)


def run_sanitized(section):
    """Few and small: compute-sanitizer slows everything down, and looks on itself."""
    for shape, layout in itertools.product(SHAPES[:3:2], FORMATS):
        for name in NAMES:
            case = (name, shape, torch.bfloat16, layout, {})
            section.check(named("compute-sanitizer", *case), runs, section.device, *case)


def named(what, name, shape, dtype, layout, how):
    size = "x".join(map(str, shape))
    shown = [value if isinstance(value, str) else key for key, value in how.items()]
    return " ".join([f"{what}:", name, size, str(dtype)[6:], layout, *shown])


class Case:
    """A layer that ``impl`` computes, with drawn parameters, and a tensor."""

    def __init__(self, device, name, shape, dtype, layout, *, values=None, per_sample=False):
        torch.manual_seed(0)
        self.name, self.device = name, device
        numbers = {"scale": 1, "shift": 0, **VALUES.get(values, {})}
        x = torch.randn(shape, dtype=torch.float64) * numbers["scale"] + numbers["shift"]
        own = {"device": device, "memory_format": FORMATS[layout]}
        self.x, self.dy = x.to(dtype).to(**own), torch.randn(shape).to(dtype).to(**own)
        self.channels = shape[1]
        self.state = get_norm_act(name, shape[1]).state_dict()
        for key, tensor in self.state.items():
            drawn = torch.randn(tensor.shape)
            self.state[key] = drawn.abs() + 0.5 if key == "running_var" else drawn
        each = (shape[0], shape[1])
        self.affine = [torch.randn(each, device=device) for _ in range(2)] if per_sample else []

    def results(self, impl, dtype=None):
        """y, every gradient and moving statistics, by name; in another dtype where one is given."""
        layer = get_norm_act(self.name, self.channels, impl=impl)
        layer.load_state_dict(self.state)
        if self.affine:
            layer.release_affine()
        layer.to(self.device, dtype)
        x, *affine = (
            (t if dtype is None else t.to(dtype)).detach().requires_grad_()
            for t in (self.x, *self.affine)
        )
        leaves = dict(layer.named_parameters())
        leaves |= dict(zip(("weight", "bias"), affine, strict=False))
        y = layer(x, *affine)
        found = torch.autograd.grad(y, [x, *leaves.values()], self.dy.to(y.dtype))
        gradients = dict(zip(("x", *leaves), found, strict=True))
        return {"y": y.detach(), **gradients, **dict(layer.named_buffers())}


def as_good_as_torch(device, name, shape, dtype, layout, how):
    """None, or what is wrong: errors, dtypes, or that a second run gives other bits."""
    case = Case(device, name, shape, dtype, layout, **how)
    exact, plain = case.results("torch", torch.float64), case.results("torch")
    fused, again = case.results("triton"), case.results("triton")
    slack = SLACK_OF_VALUES if how.get("values") else SLACK
    if device == "cpu" and dtype == torch.bfloat16:
        slack = SLACK_OF_CUT_BITS
    for key, expected in exact.items():
        if fused[key].dtype != plain[key].dtype:
            return f"{key} is {fused[key].dtype}, not {plain[key].dtype}"
        if fused[key].stride() != plain[key].stride():
            return f"{key} has strides {fused[key].stride()}, not {plain[key].stride()}"
        allowed = 2 * largest(plain[key] - expected) + slack * largest(expected) + 1e-30
        error = largest(fused[key] - expected)
        if not error <= allowed:
            return f"the error of {key} is {error:.2e}, {allowed:.2e} allowed"
        if not torch.equal(fused[key], again[key]):
            return f"{key} has other bits the second time"
    return None


def largest(tensor):
    return tensor.abs().max().item() if tensor.numel() else 0.0


def runs(device, name, shape, dtype, layout, how):
    """None, or that results are not finite; what else is wrong compute-sanitizer says."""
    found = Case(device, name, shape, dtype, layout, **how).results("triton")
    torch.get_device_module(device).synchronize()
    bad = [key for key, tensor in found.items() if not tensor.isfinite().all()]
    return f"{', '.join(bad)} not finite" if bad else None
