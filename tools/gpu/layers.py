"""Time of layers beside what they replace, and what a call costs the host."""

import contextlib
from types import SimpleNamespace

from evonorm_plugins.benchmarks import LAYERS, OTHERS, RIVALS
from evonorm_plugins.benchmarks.host import run_host
from evonorm_plugins.benchmarks.layers import run_layers
from gpu.sections import is_there

BOTH = ("EvoNormS0", "EvoNormB0")
# Packages of rivals that are none of this one or torch.
PACKAGES = {"timm": "timm", "apex": "apex.contrib.group_norm", "Liger": "liger_kernel"}
# Detection at 800x1216 (its FPN, stem and last maps) with 1 and 8 images, a GAN, ResNet-50; the
# first ones matter most.
COMPILED = [(1, 256, 200, 304), (64, 256, 56, 56)]
SHAPES = [
    *COMPILED,
    (8, 256, 200, 304),
    (64, 256, 64, 64),
    (1, 256, 50, 76),
    (4, 256, 56, 56),
    (1, 64, 400, 608),
    (64, 128, 128, 128),
    (8, 1024, 50, 76),
    (64, 2048, 7, 7),
    (1, 2048, 25, 38),
    (16, 512, 14, 14),
]
HOST_SHAPES = [(1, 64, 4, 4), (1, 256, 1, 2)]
ROUNDS, SECONDS = 20, 3.0  # of a case


def cases():
    """``(name, options)`` of every case, the most important ones first."""
    found = []
    for shape in SHAPES:
        for layout in ("contiguous", "channels_last"):
            # A compiler takes as long as all the rest: two layers of some cases are compiled.
            compiled = shape in COMPILED and layout == "contiguous"
            layers = LAYERS if shape in COMPILED and not compiled else BOTH
            for dtype in ("bfloat16", "float32"):
                found.append(case(shape, dtype, layout, layers, compiled))
    return found


def case(shape, dtype, layout, layers, compiled, repeats=ROUNDS, device="cuda"):
    size = "x".join(map(str, shape))
    # timm's layers and the plain formulas are rivals where they are compiled.
    plain = {"timm", "torch"} if not compiled else set()
    left_out = {*plain, *missing_packages()}
    rivals = [rival for rival in (*RIVALS, *OTHERS) if rival not in left_out]
    options = {
        "shapes": [shape],
        "layers": layers,
        "rivals": rivals,
        "compiled": compiled,
        "dtype": dtype,
        "layout": layout,
        "mode": "train",
        "device": device,
        "repeats": repeats,
        "seconds": SECONDS,
    }
    return f"layers: {size} {dtype} {layout}", SimpleNamespace(**options)


def missing_packages():
    return [rival for rival, name in PACKAGES.items() if not is_there(name)]


def dry_cases():
    return [
        case((2, 32, 4, 4), "float32", "contiguous", BOTH[:1], True, repeats=1, device="cpu"),
        case((1, 32, 2, 2), "bfloat16", "channels_last", BOTH, False, repeats=1, device="cpu"),
    ]


def run_timed(section):
    for rival in missing_packages():
        section.skip(f"rival {rival}", f"{PACKAGES[rival].partition('.')[0]} is not installed")

    def measure(options):
        for row in run_layers(options):
            section.record("layer", **row)

    for name, options in dry_cases() if section.dry_run else cases():
        section.attempt(name, measure, options)


def run_warm(section):
    """Compile what run_timed takes, once; its times are disturbed by others and dropped."""

    for _, options in section.mine(cases()):
        options.repeats = 1
        if section.seconds_left() > 0:
            # What cannot run is for run_timed to say.
            with contextlib.suppress(RuntimeError):
                run_layers(options)


def run_queued(section):
    """What a call costs the host: on a GPU, or with a stub of a driver."""
    dry = section.dry_run
    for layout in ("contiguous", "channels_last"):
        options = SimpleNamespace(
            shapes=HOST_SHAPES[:1] if dry else HOST_SHAPES,
            layers=BOTH[:1] if dry else LAYERS,
            layout=layout,
            impl="triton",
            device=section.device,
            repeats=1 if dry else 30,
        )
        launches = None if section.launches is None else section.launches.total
        rows = section.attempt(f"host: {layout}", run_host, options, launches)
        for row in rows or ():
            section.record("host", **row)
