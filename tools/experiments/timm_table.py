#!/usr/bin/env python
"""Fuse models of timm and print how far outputs and gradients are from float64, as a table.

Every model is built without pretrained weights, its parameters are drawn, and it is compared with
itself in float64: as timm builds it and fused, the output in evaluation mode and all gradients of a
training step. An error is the norm of the difference over the norm of what is right. A fused model
may have twice timm's.

examples:
  tools/experiments/timm_table.py
  tools/experiments/timm_table.py resnetv2_50d_evos --size 96

exit status: 0 done, 1 a fused model is further from float64 than it may be, 2 bad input
"""

import argparse
import copy
import sys
from collections import Counter
from contextlib import contextmanager

import timm
import torch

from evonorm_plugins.integrations.timm import fuse

COLUMNS = (
    *("model", "fused", "left", "output, timm", "output, fused"),
    *("gradients, timm", "gradients, fused"),
)
ENDINGS = ("_evos", "_evob", "_gn", "_frn")
# Twice timm's error, and this much where timm's happens to be next to none.
SLACK = 1e-6


def compare(name, size, images):
    """The report of fusing, and ``{what: (error of timm's, error of the fused one)}``."""
    torch.manual_seed(0)
    theirs = drawn(timm.create_model(name))
    x = torch.randn(images, 3, size, size)
    ours, report = fuse(copy.deepcopy(theirs))
    with statistics_in_double():
        right = numbers(copy.deepcopy(theirs).double(), x.double())
    found = [numbers(model, x) for model in (theirs, ours)]
    errors = {key: tuple(error(of[key], right[key]) for of in found) for key in right}
    return report, errors


def drawn(model):
    """``model`` with parameters other than those it starts from."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.abs().mean().clamp(0.1))
    return model


@contextmanager
def statistics_in_double():
    """timm takes statistics of ``x.float()``, which would make float64 no better than float32."""
    original = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = original


def numbers(model, x):
    """``{what: vector}``."""
    with torch.no_grad():
        output = model.eval()(x)
    y = model.train()(x)
    labels = torch.arange(len(x))
    torch.nn.functional.cross_entropy(y, labels).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    return {"output": output.flatten(), "gradients": gradients}


def error(values, right):
    return ((values.double() - right).norm() / right.norm()).item()


def row(name, report, errors):
    kinds = Counter(kind.partition(",")[0] for kind in report.fused.values())
    fused = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "0"
    left = Counter(why for why in report.left.values())
    cells = [f"`{name}`", fused, ", ".join(f"{n} {why}" for why, n in left.items()) or "0"]
    return cells + [f"{e:.1e}" for what in ("output", "gradients") for e in errors[what]]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"(default: all that end in {', '.join(ENDINGS)})",
    )
    add("--size", type=int, default=96, help="side of the images (%(default)s)")
    add("--images", type=int, default=4, help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    names = args.models or [n for n in timm.list_models() if n.endswith(ENDINGS)]
    unknown = [name for name in names if name not in timm.list_models()]
    if unknown:
        print(f"error: timm has no model {unknown[0]!r}", file=sys.stderr)
        return 2
    failed = []
    for line in (COLUMNS, ["---"] * len(COLUMNS)):
        print(f"| {' | '.join(line)} |")
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name}", file=sys.stderr)
        report, errors = compare(name, args.size, args.images)
        print(f"| {' | '.join(row(name, report, errors))} |", flush=True)
        for what, (theirs, ours) in errors.items():
            if not ours <= 2 * theirs + SLACK:
                failed.append(f"{name}: {what} off by {ours:.1e}, timm's by {theirs:.1e}")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
