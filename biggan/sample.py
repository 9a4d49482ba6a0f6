"""Images from a trained generator: a grid, a folder of PNG files, an npz, or interpolations."""

import argparse
import json
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from biggan.generator import running_statistics_layers
from biggan.sampling import (
    classes_of,
    grid,
    interpolate_uint8,
    load_generator,
    sample_uint8,
    with_standing_statistics,
    write_png,
)
from evonorm_plugins.errors import NoSpaceError
from evonorm_plugins.training.checkpoint import replacing

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


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m biggan.sample",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    args = parser.parse_args(argv)
    suffix = args.out.suffix.lower()
    if suffix not in (".png", ".npz", ""):
        parser.error(f"--out {args.out}: name a .png, a .npz or a folder, not {suffix}")
    if args.interpolate and suffix != ".png":
        parser.error(f"--out {args.out}: an interpolation sheet is a .png")
    if args.columns is not None and args.columns < 1:
        parser.error(f"--columns {args.columns} must be at least 1")
    if not suffix and args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f"--out {args.out} exists and is not an empty folder")
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        record = run(args)
    except (ValueError, NoSpaceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NoSpaceError) else 2
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        for key, value in record.items():
            print(f"{key:<22}{value}")
    return 0


def run(args):
    """Write what was asked for; returns the record of how it was made, also written beside it."""
    generator, config = load_generator(args.checkpoint, ema=not args.no_ema, device=args.device)
    classes = args.classes and [class_number(c, generator.classes) for c in args.classes]
    has_statistics = bool(running_statistics_layers(generator))
    passes = args.standing_statistics
    passes = (100 if passes is None else passes) if has_statistics else 0
    options = {"classes": classes, "truncation": args.truncation, "seed": args.seed}
    start = time.perf_counter()
    if args.interpolate:
        if passes:
            generator = with_standing_statistics(
                generator, passes, batch_size=args.batch_size, seed=args.seed,
                truncation=args.truncation,
            )  # fmt: skip
        rows = interpolate_uint8(
            generator, args.n, args.columns or 9, kind=args.interpolate, **options
        )
        write_png(grid(torch.cat(list(rows)), args.columns or 9), args.out)
    else:
        batches = sample_uint8(
            generator, args.n, batch_size=args.batch_size, standing_statistics=passes, **options
        )
        labels = classes_of(range(args.n), args.seed, config.num_classes, classes)
        write_samples(_progress(batches, args.n), labels, args)
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
    with replacing(args.out.with_name(f"{args.out.name}.json")) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    return record


def class_number(name, classes):
    """The number of a class given by number or name. Raises ValueError if there is none."""
    if name in classes:
        return classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    raise ValueError(
        f"there is no class {name!r}; give a number from 0 to {len(classes) - 1} or one of {known}"
    )


def write_samples(batches, labels, args):
    """Write batches of uint8 ``(B, 3, H, W)`` as a grid, an npz or a folder."""
    if args.out.suffix.lower() == ".png":
        columns = args.columns or max(1, round(args.n**0.5))
        write_png(grid(torch.cat(list(batches)), columns), args.out)
    elif args.out.suffix.lower() == ".npz":
        write_npz(batches, labels, args.out)
    else:
        write_folder(batches, labels, args.out)


def write_npz(batches, labels, path):
    """``arr_0`` uint8 ``(N, H, W, 3)`` and ``arr_1`` classes ``(N,)``, never all in memory."""
    header = np.lib.format.write_array_header_1_0
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as f:
            for k, batch in enumerate(batches):
                images = batch.permute(0, 2, 3, 1).contiguous().numpy()
                if k == 0:
                    shape = (len(labels), *images.shape[1:])
                    header(f, {"descr": "|u1", "fortran_order": False, "shape": shape})
                f.write(images.tobytes())
        with archive.open("arr_1.npy", "w") as f:
            np.lib.format.write_array(f, labels.numpy())


def write_folder(batches, labels, path):
    """``000000_class207.png`` and so on; the folder appears once it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        i = 0
        for batch in batches:
            for image in batch:
                write_png(image, partial / f"{i:06d}_class{int(labels[i])}.png")
                i += 1
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
