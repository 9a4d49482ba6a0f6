"""Draw images as the options of :mod:`biggan.sample` say."""

import json
import sys
import time

import torch

from biggan.generator import running_statistics_layers
from biggan.outputs import check_room, write_samples
from biggan.sampling import (
    STANDING_STATISTICS,
    classes_of,
    grid,
    interpolate_uint8,
    load_generator,
    sample_uint8,
    with_standing_statistics,
    write_png,
)
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import check_folder, check_output, holds_record, replacing
from evonorm_plugins.training.ranks import pick_device
from evonorm_plugins.training.seeds import check_seed


def draw(args):
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
    passes = (STANDING_STATISTICS if passes is None else passes) if has_statistics else 0
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
