"""The time that a layer costs the processor which calls it, whatever the kernels take.

On tiny tensors of the CPU that is all the time there is. On a GPU, and with Triton's driver
stubbed, calls only queue kernels, so that it is what the host takes to queue them.
"""

import time

import torch

from evonorm_plugins.benchmarks import PAIRS, measure, stub
from evonorm_plugins.benchmarks.layers import FORMATS, build_pair
from evonorm_plugins.registry import get_norm_act
from evonorm_plugins.text_table import aligned

CALLS = 20  # of which a mean is taken; few, for what disturbs it comes now and then
UNTIMED = 5  # before them: another competitor was at work
WARMUP = 3
RIVAL = "BN+ReLU"
PHASES = ("forward", "fwd+bwd")


def stub_triton():
    """Put a stub in the place of Triton's driver, and say so; returns what tells its launches.

    Raises:
        RunError: there is no Triton, an old one, or its interpreter is on.
    """
    driver = stub.install()
    measure.say(
        "a stub is Triton's driver: kernels are compiled, their launches counted and dropped"
    )
    return driver.launches.total


def run_host(args, launches=None):
    """Rows of all shapes, one for each competitor.

    Args:
        args: the options of ``tools/benchmark.py host``.
        launches: a function that tells how many kernels were launched so far, of a stubbed driver.
            None: they are not counted.
    """
    return [
        row for shape in dict.fromkeys(args.shapes) for row in _run_shape(args, shape, launches)
    ]


def _run_shape(args, shape, launches):
    torch.manual_seed(0)
    x, dy = (
        torch.randn(shape, device=args.device).contiguous(memory_format=FORMATS[args.layout])
        for _ in range(2)
    )
    x.requires_grad_()
    modules = _build_modules(args, shape[1])
    runs = {name: _calls(module.to(args.device), x, dy) for name, module in modules.items()}
    times = host_times(runs, args.repeats, args.device == "cuda")
    fixed = {
        "shape": "x".join(map(str, shape)),
        "layout": args.layout,
        **measure.environment(args.device),
        "impl": args.impl,
        "stubbed": launches is not None,
    }
    rows = []
    for name, found in times.items():
        row = {**fixed, "competitor": name}
        for phase, microseconds in found.items():
            row[f"{phase}_us"] = round(microseconds, 2)
            row[f"{phase}_of_{RIVAL}"] = round(microseconds / times[RIVAL][phase], 3)
            if launches:
                before = launches()
                runs[name][phase]()
                row[f"{phase}_launches"] = launches() - before
        rows.append(row)
    return rows


def _build_modules(args, channels):
    """``{competitor: module}``; "affine" is what stands where no activation follows."""
    modules = {pair: build_pair(pair, channels) for pair in PAIRS}
    for layer in dict.fromkeys(args.layers):
        modules[layer] = get_norm_act(layer, channels, impl=args.impl)
    modules["affine"] = get_norm_act("EvoNormS0", channels, impl=args.impl, apply_act=False)
    return modules


def _calls(module, x, dy):
    inputs = [x, *module.parameters()]

    def forward():
        module(x)

    def both():
        torch.autograd.grad(module(x), inputs, dy)

    return dict(zip(PHASES, (forward, both), strict=True))


def host_times(runs, repeats, waits=False, now=time.perf_counter):
    """Microseconds of a call: ``{key: {phase: least of the means over CALLS calls}}``.

    The competitors take turns; what slows the machine down for a while meets all of them.

    Args:
        runs: ``{key: {phase: function}}``.
        waits: whether to wait for a GPU, outside of the time, before each mean is taken.
    """
    best = {key: dict.fromkeys(phases, float("inf")) for key, phases in runs.items()}
    for number in range(-WARMUP, repeats):
        for key, phases in runs.items():
            for phase, call in phases.items():
                if waits:
                    torch.cuda.synchronize()
                for _ in range(UNTIMED):
                    call()
                start = now()
                for _ in range(CALLS):
                    call()
                mean = (now() - start) * 1e6 / CALLS
                if number >= 0:
                    best[key][phase] = min(best[key][phase], mean)
    return best


def host_report(rows):
    """A table of the rows of one shape."""
    counted = [phase for phase in PHASES if f"{phase}_launches" in rows[0]]
    head = ["host time, us", *PHASES, *(f"{phase} of {RIVAL}" for phase in PHASES)]
    lines = [head + [f"{phase} launches" for phase in counted]]
    for row in rows:
        times = [f"{row[f'{phase}_us']:.1f}" for phase in PHASES]
        ratios = [f"{row[f'{phase}_of_{RIVAL}']:.2f}" for phase in PHASES]
        launches = [str(row[f"{phase}_launches"]) for phase in counted]
        lines.append([row["competitor"], *times, *ratios, *launches])
    return f"{rows[0]['shape']}, {rows[0]['layout']}\n{aligned(lines)}"
