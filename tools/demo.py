#!/usr/bin/env python
"""Train two small models with EvoNorm and show what they do: a Mask R-CNN, then a BigGAN-deep.

The Mask R-CNN, Detectron2's or torchvision's, finds coloured shapes, the BigGAN-deep writes digits.
Each takes at most five minutes on two CPU cores. The rest of what is in OUTPUT_DIR/run and
OUTPUT_DIR/digits: configs, logs, metrics, checkpoints and pictures.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from make_shapes_dataset import make_shapes_dataset

from evonorm_plugins.errors import InputError
from evonorm_plugins.registry import try_norm_act

ROOT = Path(__file__).resolve().parents[1]
NORM_KEYS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")  # of MODEL
PROGRESS = re.compile(r"eta: (\S+)\s+iter: (\d+)\s+total_loss: (\S+)")
# Lines of the log that follow the report's: the AP table has three.
REPORT = re.compile(r"evonorm_plugins\]: (AP in percent|Wrote|[\d.]+ s per iteration)")
DETECTORS = {"detectron2": "Detectron2's Mask R-CNN", "torchvision": "torchvision's Mask R-CNN"}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--norm",
        default="EvoNormS0",
        help="of both: a registered layer's name, or a layer graph's file, layer.json "
        "(default: %(default)s)",
    )
    parser.add_argument("--only", choices=["detection", "biggan"], help="one of the two models")
    parser.add_argument(
        "--detector",
        choices=list(DETECTORS),
        help="whose Mask R-CNN (default: Detectron2's where it is installed)",
    )
    parser.add_argument(
        "--nuclei",
        type=Path,
        metavar="DIR",
        help="instead of both, train Detectron2's Mask R-CNN on nuclei: DIR holds train/, val/, "
        "instances_train.json and instances_val.json",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        help="of the Mask R-CNN (default: 700; with --nuclei as many as its config says)",
    )
    parser.add_argument("--gan-steps", type=int, help="of the BigGAN-deep (default: its config's)")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "output/demo")
    args = parser.parse_args(argv)
    try:
        try_norm_act(args.norm)
    except (InputError, TypeError) as error:
        parser.error(f"--norm: {error}")
    if args.iterations is not None and args.iterations < 1:
        parser.error(f"--iterations {args.iterations} must be at least 1")
    if args.gan_steps is not None and args.gan_steps < 1:
        parser.error(f"--gan-steps {args.gan_steps} must be at least 1")
    if args.nuclei:
        return find_nuclei(args)
    args.iterations = args.iterations or 700
    parts = {"detection": detect, "biggan": write_digits}
    chosen = [args.only] if args.only else list(parts)
    return max([parts[name](args) for name in chosen])


def detect(args):
    """Train and evaluate the Mask R-CNN; returns an exit status."""
    missing = importlib.util.find_spec("detectron2") is None
    detector = args.detector or ("torchvision" if missing else "detectron2")
    if missing and detector == "detectron2":
        return say_missing("--detector detectron2")
    reason = "Detectron2 is not installed: " if missing and not args.detector else ""
    print(
        f"{reason}training {DETECTORS[detector]} with {args.norm} on coloured shapes, "
        f"{args.iterations} iterations",
        flush=True,
    )
    data = make_shapes_dataset(args.output_dir / "shapes", train=400, val=50, class_colours=True)
    run = emptied(args.output_dir / "run")
    if detector == "torchvision":
        return train_torchvision(args, data, run)
    config = "quick/mask_rcnn_R_18_FPN_EvoNormS0_shapes.yaml"
    steps = str(tuple(rate_steps(args)))
    return train_detectron2(args, config, data, run, args.iterations, "SOLVER.STEPS", steps)


def say_missing(option):
    file = Path(sys.prefix, "detectron2-missing.txt")
    why = file.read_text() if file.exists() else "Detectron2 is not installed."
    print(f"error: {option} needs Detectron2.\n{why}", file=sys.stderr)
    return 1


def find_nuclei(args):
    """Train and evaluate the Mask R-CNN on nuclei; returns an exit status."""
    data = {}
    for split in ("train", "val"):
        data[f"{split}_json"] = args.nuclei / f"instances_{split}.json"
        data[f"{split}_images"] = args.nuclei / split
    gone = [str(path) for path in data.values() if not path.exists()]
    if gone:
        print(f"error: --nuclei {args.nuclei}: {gone[0]} is not there", file=sys.stderr)
        return 2
    if importlib.util.find_spec("detectron2") is None:
        return say_missing("--nuclei")
    recipe = ROOT / "detectron_configs/nuclei/Base-Nuclei.yaml"
    length = re.search(r"MAX_ITER: (\d+)", recipe.read_text())[1]
    iterations = args.iterations or int(length)
    print(f"training Detectron2's Mask R-CNN with {args.norm} on nuclei, {iterations} iterations")
    run = emptied(args.output_dir / "nuclei")
    config = "nuclei/mask_rcnn_R_18_FPN_EvoNormS0.yaml"
    return train_detectron2(args, config, data, run, iterations)


def emptied(run):
    if run.exists():
        print(f"Removing the earlier run in {run}")
        shutil.rmtree(run)
    return run


def write_digits(args):
    """Train the BigGAN-deep, have its digits read, draw them; returns an exit status."""
    run = emptied(args.output_dir / "digits")
    config = ROOT / "biggan/configs/digits32_EvoNormS0.yaml"
    steps = [f"steps={args.gan_steps}"] if args.gan_steps else []
    best = str(run / "best.pt")
    print(f"Training BigGAN-deep with {args.norm} on handwritten digits", flush=True)
    for command in (
        [
            *("biggan.train", "--config", str(config)),
            *(f"norm={args.norm}", f"output_dir={run}", *steps),
        ],
        ["biggan.digits", "--checkpoint", best],
        [
            *("biggan.sample", "--checkpoint", best, "--n", "100", "--columns", "10"),
            *("--classes", *"0123456789", "--out", str(run / "digits.png")),
        ],
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        status = subprocess.call([sys.executable, "-m", *command], env=environment)
        if status:
            return status
    return 0


def train_torchvision(args, data, run):
    """Run tools/train_torchvision.py; returns its exit status."""
    command = [
        sys.executable, "-u", str(ROOT / "tools/train_torchvision.py"),
        *data_options(data), "--output-dir", str(run),
        "--model", "maskrcnn_resnet18_fpn_small", "--norm", args.norm,
        "--min-size", "128", "--max-size", "128", "--workers", "0", "--batch", "4",
        "--iterations", str(args.iterations), "--lr", "0.04", "--weight-decay", "4e-5",
        "--warmup", "30", "--warmup-factor", "0.067", "--steps", *map(str, rate_steps(args)),
        "--seed", "1",
    ]  # fmt: skip
    return subprocess.call(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def rate_steps(args):
    """Iterations after which the learning rate is divided by ten."""
    return sorted({max(1, int(args.iterations * share)) for share in (0.75, 0.92)})


def data_options(data):
    return [x for k, path in data.items() for x in ("--" + k.replace("_", "-"), str(path))]


def train_detectron2(args, config, data, run, iterations, *options):
    """Run tools/train_net.py, show its progress and its results; returns its exit status."""
    command = [
        sys.executable, "-u", str(ROOT / "tools/train_net.py"),
        "--config-file", str(ROOT / "detectron_configs" / config), *data_options(data),
        "OUTPUT_DIR", str(run), "SOLVER.MAX_ITER", str(iterations),
        *(x for key in NORM_KEYS for x in (f"MODEL.{key}.NORM", args.norm)), *options,
    ]  # fmt: skip
    last, table = [], 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            last = [*last[-30:], line]
            progress = PROGRESS.search(line)
            if progress:
                eta, iteration, loss = progress.groups()
                done = f"{int(iteration) + 1}/{iterations}"
                print(f"  iteration {done:>9}   loss {loss:<7} {eta} left", flush=True)
            elif REPORT.search(line):
                print(line.split("]: ", 1)[1], end="")
                table = 3 * ("AP in percent" in line)
            elif table:
                print(line, end="")
                table -= 1
    if process.returncode:
        sys.stderr.writelines(last)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
