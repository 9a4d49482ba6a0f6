#!/usr/bin/env python
"""Time and memory of a BigGAN-deep training step, beside ajbrock/BigGAN-PyTorch's BigGANdeep.

A step is one update of the discriminator and one of the generator, with Adam, spectral norm and the
average of the generator, on the same drawn images. Times: the rivals take turns in one process, the
ratio is that of medians. Memory: each rival in a process of its own, the highest resident size of
the step less that before it (on a GPU: the highest allocated).

Under torchrun every rank takes its part of the batch and rank 0 reports; this is for times of ours.
"""

import argparse
import csv
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

EXAMPLES = """
examples:
  git clone https://github.com/ajbrock/BigGAN-PyTorch /tmp/biggan-ref
  tools/benchmark_biggan.py --reference /tmp/biggan-ref --channels 32 --batch 8
  tools/benchmark_biggan.py --reference /tmp/biggan-ref --channels 128 --batch 64 \\
      --precision bf16 --device cuda
  ours alone, other norms:
    tools/benchmark_biggan.py --norms EvoNormS0 EvoNormB0 BN-ReLU GN-ReLU
  one process and two, the same images for each:
    tools/benchmark_biggan.py --threads 1 --batch 8
    torchrun --nproc_per_node=2 tools/benchmark_biggan.py --threads 1 --batch 16

exit status: 0 done, 1 failed, 2 bad input
"""
THEIRS = "reference BN-ReLU"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="folder with the other implementation")
    parser.add_argument("--norms", nargs="+", default=["EvoNormS0", "BN-ReLU"])
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of a process (default: torch's choice)")
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--csv", type=Path, help="append the results to a file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.reference and not (args.reference / "BigGANdeep.py").is_file():
        parser.error(f"--reference {args.reference} has no BigGANdeep.py")
    for name in ("batch", "rounds", "channels", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value} must be at least 1")
    args.ranks = int(os.environ.get("WORLD_SIZE", 1))
    if args.ranks > 1 and (args.reference or args.memory):
        parser.error("--reference and --memory are for one process, not for torchrun")
    if args.batch % args.ranks:
        parser.error(f"--batch {args.batch} is not divisible by {args.ranks} ranks")
    return args


def images_of(args):
    random = torch.Generator().manual_seed(0)
    images = args.batch // args.ranks
    shape = (images, 3, args.resolution, args.resolution)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    return pixels, torch.randint(1000, (images,), generator=random)


@functools.cache
def ranks_of(device):
    """The processes; a process joins them once."""
    from evonorm_plugins.training.ranks import Ranks

    return Ranks(device)


def our_step(args, norm):
    """A function that takes one training step."""
    from biggan.config import from_dict
    from biggan.trainer import Trainer

    options = {"resolution": args.resolution, "channels": args.channels, "num_classes": 1000}
    options |= {"norm": norm, "batch_size": args.batch, "d_steps": 1}
    options |= {"precision": args.precision, "device": args.device, "compile": args.compile}
    trainer = Trainer(from_dict(options), ranks_of(args.device))
    batches = itertools.repeat(images_of(args))
    return lambda: trainer.train_step(batches)


def their_step(args):
    """The same of the reference: its models, its optimizer, its training function and average."""
    sys.path.insert(0, str(args.reference))
    import BigGANdeep
    import train_fns
    import utils

    common = {"resolution": args.resolution, "n_classes": 1000, "adam_eps": 1e-6}
    size = {"G_attn": "64", "D_attn": "64", "BN_eps": 1e-4, "SN_eps": 1e-4}
    g_options = {"G_ch": args.channels, "dim_z": 128, "shared_dim": 128, "G_shared": True}
    # It would concatenate latent and embedding only where its latent is called hierarchical.
    g_options |= {"hier": True, "G_depth": 2}
    device = torch.device(args.device)
    generator = BigGANdeep.Generator(**common, **size, **g_options).to(device)
    average = BigGANdeep.Generator(**common, **size, **g_options, no_optim=True).to(device)
    discriminator = BigGANdeep.Discriminator(
        **common, **size, D_ch=args.channels, D_depth=2, D_wide=True
    ).to(device)
    z = torch.randn(args.batch, 128, device=device)
    y = torch.randint(1000, (args.batch,), device=device)
    z.sample_ = lambda: z.normal_()
    y.sample_ = lambda: y.random_(0, 1000)
    config = {"batch_size": args.batch, "num_D_steps": 1, "num_D_accumulations": 1}
    config |= {"num_G_accumulations": 1, "split_D": False, "toggle_grads": True, "ema": True}
    config |= {"D_ortho": 0.0, "G_ortho": 0.0}
    ema = utils.ema(generator, average, 0.9999, 0)
    step = train_fns.GAN_training_function(
        generator, discriminator, BigGANdeep.G_D(generator, discriminator), z, y, ema,
        {"itr": 1}, config,
    )  # fmt: skip
    images, labels = images_of(args)
    dtype = torch.bfloat16 if args.precision == "bf16" else None

    def one():
        x = images.to(device).float().div_(127.5).sub_(1)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            step(x, labels.to(device))

    return one


def step_of(args, name):
    return their_step(args) if name == THEIRS else our_step(args, name)


def is_main():
    return os.environ.get("RANK", "0") == "0"


def synchronize(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


def times(args, names):
    """Milliseconds of every round, by name; the rivals take turns."""
    steps = {name: step_of(args, name) for name in names}
    found = {name: [] for name in names}
    for k in range(args.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            synchronize(args)
            if k >= 2:  # the first ones allocate and choose algorithms
                found[name].append((time.perf_counter() - start) * 1000)
        if is_main():
            print(f"\rround {k + 1}/{args.rounds + 2}", end="", file=sys.stderr, flush=True)
    if is_main():
        print(file=sys.stderr)
    return found


def memory(args, name):
    """MiB that three steps need at most beyond what the process had before them."""
    from evonorm_plugins.training.memory import peak_memory

    step, device = step_of(args, name), torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_memory(device)
    for _ in range(3):
        step()
    return (peak_memory(device) - before) / 2**20


def memory_apart(args, name, argv):
    command = [sys.executable, __file__, *argv, "--one", name]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if out.returncode:
        raise RuntimeError(f"{name}: {out.stderr.strip().splitlines()[-1]}")
    return float(out.stdout.split()[-1])


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        print(memory(args, args.one))
        return 0
    names = ([THEIRS] if args.reference else []) + args.norms
    rows = []
    if args.memory:
        found = {name: memory_apart(args, name, argv) for name in names}
        for name, mib in found.items():
            rows.append({"model": name, "MiB": round(mib), "of the first": mib / found[names[0]]})
    else:
        found = {name: statistics.median(ms) for name, ms in times(args, names).items()}
        for name, ms in found.items():
            speed = {"ms": round(ms, 1), "images/s": args.batch * 1000 / ms}
            rows.append({"model": name, **speed, "speed, first = 1": found[names[0]] / ms})
    record = {
        **{k: getattr(args, k) for k in ("resolution", "channels", "batch", "precision")},
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "processes": args.ranks,
        "threads": torch.get_num_threads(),
        "compiled": args.compile,
        "torch": torch.__version__,
    }
    if args.ranks > 1:
        ranks_of(args.device).close()
    if is_main():
        report(args, rows, record)
    return 0


def report(args, rows, record):
    if args.json:
        print(json.dumps({**record, "rows": rows}, indent=2))
    else:
        print(", ".join(f"{k} {v}" for k, v in record.items()))
        print("".join(f"{k:>20}" for k in rows[0]))
        for row in rows:
            shown = (f"{v:.2f}" if isinstance(v, float) else v for v in row.values())
            print("".join(f"{v:>20}" for v in shown))
    if args.csv:
        new = not args.csv.exists()
        with open(args.csv, "a", newline="") as f:
            writer = csv.DictWriter(f, [*rows[0], *record])
            if new:
                writer.writeheader()
            writer.writerows([{**row, **record} for row in rows])


if __name__ == "__main__":
    sys.exit(main())
