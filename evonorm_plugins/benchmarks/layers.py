"""EvoNorms and their rivals on tensors."""

import torch
from torch import nn

from evonorm_plugins.benchmarks import PAIRS, PHASES
from evonorm_plugins.benchmarks.measure import (
    MIB,
    Copies,
    Layer,
    environment,
    interleave,
    make_clock,
    quantiles,
    say,
    time_phases,
)
from evonorm_plugins.errors import RunError
from evonorm_plugins.functional import effective_groups
from evonorm_plugins.registry import get_norm_act

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GROUPS = 32
WARMUP = 2


def run_layers(args):
    """Rows of all shapes, one for each competitor and phase.

    Args:
        args: the options of ``evonorm bench``.

    Raises:
        RunError: a layer of ours cannot run.
    """
    with torch.set_grad_enabled(args.mode == "train"):
        clock = make_clock(args.device)
        shapes = dict.fromkeys(args.shapes)
        return [row for shape in shapes for row in _run_shape(args, shape, clock)]


def _run_shape(args, shape, clock):
    competitors = build_competitors(args, shape)
    fixed = {
        "shape": "x".join(map(str, shape)),
        "dtype": args.dtype,
        "layout": args.layout,
        "mode": args.mode,
        **environment(args.device),
    }
    say(f"{fixed['shape']}: {len(competitors)} competitors")
    runs = {
        key: lambda c=competitor: time_phases(c, clock, args.mode)
        for key, (competitor, _) in competitors.items()
    }
    times = interleave(runs, args.repeats, args.seconds, WARMUP)
    return [
        {
            **fixed,
            "competitor": competitor,
            "impl": impl,
            "phase": phase,
            **quantiles(times[competitor, impl][phase]),
            "rounds": len(times[competitor, impl][phase]),
            "kept_MiB": round(kept / MIB, 4),
        }
        for (competitor, impl), (_, kept) in competitors.items()
        for phase in PHASES[args.mode]
    ]


def build_competitors(args, shape):
    """``{(competitor, impl): (competitor, kept bytes)}``; rivals that cannot run are left out."""
    torch.manual_seed(0)
    x, dy = (
        torch.randn(shape, device=args.device)
        .to(getattr(torch, args.dtype))
        .contiguous(memory_format=FORMATS[args.layout])
        for _ in range(2)
    )
    x.requires_grad_(args.mode == "train")
    found = {}
    for key, module in _build_modules(args, shape[1]).items():
        competitor = Layer(module, x, dy)
        try:
            found[key] = competitor, competitor.kept_bytes()
        except (RuntimeError, ValueError) as error:
            if key[1] == "auto":
                raise RunError(f"{key[0]} cannot run: {error}") from error
            reason = str(error).splitlines()[0]
            say(f"  {' '.join(key)} is left out, it cannot run: {reason}")
    for kind in ("existing", "fresh"):
        found["copy", kind] = Copies(x, dy, fresh=kind == "fresh"), 0
    return found


def _build_modules(args, channels):
    """``{(competitor, impl): module}``, without the floors."""
    impls = ["auto", *(impl for impl in ("torch", "timm") if impl in args.rivals)]
    keys = [(layer, impl) for layer in dict.fromkeys(args.layers) for impl in impls]
    modules = {key: _evonorm(*key, channels) for key in keys if key[1] != "timm" or key[0] in TIMM}
    if args.compiled:
        torch.compiler.reset()  # or the second shape would be compiled for any shape
        for layer, impl in [key for key in modules if key[1] != "auto"]:
            compiled = torch.compile(_evonorm(layer, impl, channels), dynamic=False)
            modules[layer, f"{impl} compiled"] = compiled
    for pair in PAIRS:
        if pair in args.rivals:
            modules[pair, "torch.nn"] = build_pair(pair, channels)
    for other in OTHERS:
        if other in args.rivals:
            modules["GN+SiLU", other] = OTHERS[other](channels)
    for module in modules.values():
        module.to(args.device).train(args.mode == "train")
    if args.device == "cuda":
        for key, pair in modules.items():
            others = [pair] if key[1] in OTHERS else []
            norms = [m for m in pair if isinstance(m, nn.GroupNorm)] if key[1] == "torch.nn" else []
            for norm in (*others, *norms):
                norm.to(getattr(torch, args.dtype))  # takes no other parameters there
    return modules


def _evonorm(layer, impl, channels):
    if impl == "timm":
        return TIMM[layer](channels)
    return get_norm_act(layer, channels, impl=impl)


def _timm_s0(channels):
    from timm.layers.evo_norm import EvoNorm2dS0

    return EvoNorm2dS0(channels, groups=effective_groups(channels, GROUPS))


def _timm_b0(channels):
    from timm.layers.evo_norm import EvoNorm2dB0

    return EvoNorm2dB0(channels)


def _apex_gn_silu(channels):
    """In one kernel, for channels_last alone."""
    from apex.contrib.group_norm import GroupNorm

    return GroupNorm(effective_groups(channels, GROUPS), channels, act="silu")


def _liger_gn_silu(channels):
    from liger_kernel.transformers.group_norm import LigerGroupNorm

    groups = effective_groups(channels, GROUPS)
    return nn.Sequential(LigerGroupNorm(channels, groups, eps=1e-5, bias=True), nn.SiLU())


OTHERS = {"apex": _apex_gn_silu, "Liger": _liger_gn_silu}
TIMM = {"EvoNormS0": _timm_s0, "EvoNormB0": _timm_b0}


def build_pair(name, channels):
    if name == "BN+ReLU":
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    norm = nn.GroupNorm(effective_groups(channels, GROUPS), channels)
    return nn.Sequential(norm, nn.SiLU() if name == "GN+SiLU" else nn.ReLU(inplace=True))
