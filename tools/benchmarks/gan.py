"""Time and memory of a BigGAN-deep training step, beside ajbrock/BigGAN-PyTorch's BigGANdeep.

A step is one update of the discriminator and one of the generator, with Adam, spectral norm and the
average of the generator, on the same drawn images. Times: the rivals take turns in one process, the
ratio is that of medians. Memory: each rival in a process of its own, the highest resident size of
the step less that before it (on a GPU: the highest allocated).

Under torchrun every rank takes its part of the batch and rank 0 reports; this is for times of ours.
"""

import csv
import functools
import itertools
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import check_output

EXAMPLES = """
examples:
  git clone https://github.com/ajbrock/BigGAN-PyTorch /tmp/biggan-ref
  tools/benchmark.py gan --reference /tmp/biggan-ref --channels 32 --batch 8
  tools/benchmark.py gan --reference /tmp/biggan-ref --channels 128 --batch 64 \\
      --precision bf16 --device cuda
  ours alone, other norms:
    tools/benchmark.py gan --norms EvoNormS0 EvoNormB0 BN-ReLU GN-ReLU
  one process and two, the same images for each:
    tools/benchmark.py gan --threads 1 --batch 8
    torchrun --nproc_per_node=2 tools/benchmark.py gan --threads 1 --batch 16
"""
THEIRS = "reference BN-ReLU"


def add_arguments(parser):
    add = parser.add_argument
    add("--reference", type=Path, metavar="FOLDER", help="with the other implementation")
    add("--norms", nargs="+", default=["EvoNormS0", "BN-ReLU"], help="(default: %(default)s)")
    add("--resolution", type=count, default=128, help="(default: %(default)s)")
    add("--channels", type=count, default=32, help="(default: %(default)s)")
    add("--batch", type=count, default=8, help="images of all ranks (default: %(default)s)")
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--device", choices=["cpu", "cuda"], help="(default: cuda where there is one)")
    add("--rounds", type=count, default=5, help="(default: %(default)s)")
    add("--threads", type=count, help="of a process (default: torch's choice)")
    add("--compile", action="store_true", help="ours by torch.compile")
    add("--memory", action="store_true", help="memory instead of time")
    add("--csv", type=Path, metavar="FILE", help="append the results to a file")
    add("--json", action="store_true", help="JSON instead of a table")


def check(args):
    """Raise :class:`ConfigError` where options do not go together."""
    args.ranks = int(os.environ.get("WORLD_SIZE", 1))
    if args.reference and not (args.reference / "BigGANdeep.py").is_file():
        raise ConfigError(f"--reference {args.reference} has no BigGANdeep.py")
    if args.ranks > 1 and (args.reference or args.memory):
        raise ConfigError("--reference and --memory are for one process, not for torchrun")
    if args.batch % args.ranks:
        raise ConfigError(f"--batch {args.batch} is not divisible by {args.ranks} ranks")
    if args.csv:
        check_output(args.csv, name="--csv", ours=is_ours)


def is_ours(path):
    """Whether a file is one that :func:`report` wrote, to which it appends."""
    with open(path, "rb") as file:
        return file.read(6) == b"model,"


def images_of(args):
    import torch

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
    import torch
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
    import torch

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
    import torch

    from evonorm_plugins.benchmarks import measure

    if args.threads:
        torch.set_num_threads(args.threads)
    step = step_of(args, name)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = measure.used_bytes(args.device)
    for _ in range(3):
        step()
    return (measure.used_bytes(args.device, peak=True) - before) / 2**20


def run(args):
    import torch

    from evonorm_plugins.benchmarks.measure import apart

    check(args)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ([THEIRS] if args.reference else []) + args.norms
    rows = []
    if args.memory:
        found = {name: apart(memory, args, name) for name in names}
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
