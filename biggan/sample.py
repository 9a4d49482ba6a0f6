"""Images from a trained generator: a grid, a folder of PNG files, an npz, or interpolations."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from biggan.generator import running_statistics_layers
from biggan.outputs import check_room, write_samples
from biggan.sampling import (
    classes_of,
    grid,
    interpolate_uint8,
    load_generator,
    sample_uint8,
    with_standing_statistics,
    write_png,
)
from evonorm_plugins.errors import ConfigError, run_command
from evonorm_plugins.files import check_folder, check_output, holds_record, replacing
from evonorm_plugins.training.ranks import pick_device
from evonorm_plugins.training.seeds import check_seed

__all__ = ["load_generator", "main", "sample_uint8"]

EXAMPLES = """
examples:
  64 images of class 207 in a grid:
    python -m biggan.sample --checkpoint best.pt --classes 207 --truncation 0.5 \\
        --n 64 --out grid.png
  50,000 images of all classes, for scores:
    python -m biggan.sample --checkpoint best.pt --n 50000 --out samples.npz
  a folder of PNG files, classes by name:
    python -m biggan.sample --checkpoint best.pt --classes cat dog --n 100 --out samples/
  from one class to another, 8 rows of 9 images:
    python -m biggan.sample --checkpoint best.pt --interpolate class --n 8 --out sheet.png

exit status: 0 done, 1 failed, 2 bad input
"""


def add_arguments(parser):
    parser.add_argument("--checkpoint", required=True, help="best.pt or checkpoint.pt of a run")
    parser.add_argument(
        "--out", required=True, type=Path, help="FILE.png (grid), FILE.npz, or a new folder"
    )
    parser.add_argument("--n", type=int, default=64, help="images; rows of an interpolation sheet")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="numbers or names, used in turn (default: drawn)",
    )
    parser.add_argument("--truncation", type=float, help="largest magnitude of a latent's numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--columns", type=int, help="of a grid (default: square) or sheet (9)")
    parser.add_argument("--interpolate", choices=["z", "class", "both"], help="draw a sheet")
    parser.add_argument("--no-ema", action="store_true", help="the weights as they were trained")
    parser.add_argument(
        "--standing-statistics",
        type=int,
        metavar="PASSES",
        help="forward passes that batch statistics are averaged over (default: 100 for norms that "
        "have them); 0 keeps the moving ones of training",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def main(argv=None):
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m biggan.sample",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    return run_command(lambda: run(args))


def run(args):
    """Draw and write what the arguments say, and print the record of it."""
    record = sample(args)
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        for key, value in record.items():
            print(f"{key:<22}{value}")


def sample(args):
    """Write what was asked for; returns the record of how it was made, also written beside it.

    Raises:
        InputError, NoSpaceError: what is wrong, before anything is drawn.
    """
    record_path = args.out.with_name(f"{args.out.name}.json") if args.out.name else args.out
    _check(args, record_path)
    device = pick_device(args.device)
    generator, config = load_generator(args.checkpoint, ema=not args.no_ema, device=device)
    classes = args.classes and [class_number(c, generator.classes) for c in args.classes]
    has_statistics = bool(running_statistics_layers(generator))
    passes = args.standing_statistics
    passes = (100 if passes is None else passes) if has_statistics else 0
    columns = args.columns or (9 if args.interpolate else max(1, round(max(args.n, 1) ** 0.5)))
    check_room(args, config, columns, passes=passes, device=device)
    options = {"classes": classes, "truncation": args.truncation, "seed": args.seed}
    start = time.perf_counter()
    if args.interpolate:
        if passes:
            generator = with_standing_statistics(
                generator, passes, batch_size=args.batch_size, seed=args.seed,
                truncation=args.truncation,
            )  # fmt: skip
        rows = interpolate_uint8(generator, args.n, columns, kind=args.interpolate, **options)
        write_png(grid(torch.cat(list(rows)), columns), args.out)
    else:
        batches = sample_uint8(
            generator, args.n, batch_size=args.batch_size, standing_statistics=passes, **options
        )
        labels = classes_of(range(args.n), args.seed, config.num_classes, classes)
        write_samples(_progress(batches, args.n), labels, args.out, columns)
    seconds = time.perf_counter() - start
    record = {
        "out": str(args.out),
        "checkpoint": str(args.checkpoint),
        "step": generator.step,
        "norm": config.norm,
        "resolution": config.resolution,
        "weights": "as trained" if args.no_ema else "averaged (EMA)",
        "batch statistics": _statistics_text(has_statistics, passes),
        "n": args.n,
        "classes": "all" if classes is None else " ".join(map(str, classes)),
        "truncation": args.truncation,
        "seed": args.seed,
        "seconds": round(seconds, 2),
    }
    with replacing(record_path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    return record


def class_number(name, classes):
    """The number of a class given by number or name. Raises ConfigError if there is none."""
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    raise ConfigError(
        f"there is no class {name!r}; give a number from 0 to {len(classes) - 1} or one of {known}"
    )


def _check(args, record_path):
    """Raise :class:`ConfigError` for options that are wrong whatever the checkpoint is."""
    check_seed(args.seed, "--seed ")
    if not args.out.name:
        raise ConfigError("--out: the name is empty")
    out, suffix = args.out, args.out.suffix.lower()
    if suffix not in (".png", ".npz", ""):
        raise ConfigError(f"--out {out}: name a .png, a .npz or a folder, not {suffix}")
    if args.interpolate and suffix != ".png":
        raise ConfigError(f"--out {out}: an interpolation sheet is a .png")
    for name in ("n", "batch_size", "columns", "standing_statistics"):
        value, lowest = getattr(args, name), 0 if name == "standing_statistics" else 1
        if value is not None and value < lowest:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {value} must be at least {lowest}")

    def ours(path):
        return holds_record(record_path, "checkpoint", "truncation", "batch statistics")

    checked = {"inputs": [args.checkpoint], "force": args.force, "ours": ours}
    if suffix:
        check_output(out, **checked)
    else:
        check_folder(out, name="--out")
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"--out {out} exists and is not an empty folder")
    check_output(record_path, **checked)


def _progress(batches, n):
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        print(f"\r{done}/{n} images", end="" if done < n else "\n", file=sys.stderr, flush=True)


def _statistics_text(has_statistics, passes):
    if not has_statistics:
        return "none"
    return f"standing, {passes} forward passes" if passes else "moving, of training"


if __name__ == "__main__":
    sys.exit(main())
