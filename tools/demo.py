#!/usr/bin/env python
"""Train a small Mask R-CNN with EvoNorm on coloured shapes and show what it finds.

Takes at most five minutes on two CPU cores. The rest of what is in OUTPUT_DIR/run: config.yaml,
log.txt, metrics.json, checkpoints and results.json.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from make_shapes_dataset import make_shapes_dataset

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(r"eta: (\S+)\s+iter: (\d+)\s+total_loss: (\S+)")
# Lines of the log that follow the report's: the AP table has three.
REPORT = re.compile(r"evonorm_plugins\]: (AP in percent|Wrote|[\d.]+ s per iteration)")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norm", default="EvoNormS0", choices=["EvoNormS0", "EvoNormB0"])
    parser.add_argument("--iterations", type=int, default=700)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "output/demo")
    args = parser.parse_args(argv)
    if args.iterations < 1:
        parser.error(f"--iterations {args.iterations} must be at least 1")
    if importlib.util.find_spec("detectron2") is None:
        missing = Path(sys.prefix, "detectron2-missing.txt")
        why = missing.read_text() if missing.exists() else "Detectron2 is not installed."
        print(f"error: the demo needs Detectron2.\n{why}", file=sys.stderr)
        return 1
    data = make_shapes_dataset(args.output_dir / "shapes", train=400, val=50, class_colours=True)
    run = args.output_dir / "run"
    if run.exists():
        print(f"Removing the earlier run in {run}")
        shutil.rmtree(run)
    return train(args, data, run)


def train(args, data, run):
    """Run tools/train_net.py, show its progress and its results; returns its exit status."""
    steps = [int(args.iterations * share) for share in (0.75, 0.92)]
    config = ROOT / f"detectron_configs/quick/mask_rcnn_R_18_FPN_{args.norm}_shapes.yaml"
    command = [
        sys.executable, "-u", str(ROOT / "tools/train_net.py"),
        "--config-file", str(config),
        "--train-json", data["train_json"], "--train-images", data["train_images"],
        "--val-json", data["val_json"], "--val-images", data["val_images"],
        "OUTPUT_DIR", str(run),
        "SOLVER.MAX_ITER", str(args.iterations), "SOLVER.STEPS", str(tuple(steps)),
    ]  # fmt: skip
    print(f"Training Mask R-CNN with {args.norm} on coloured shapes, {args.iterations} iterations")
    last, table = [], 0
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            last = [*last[-30:], line]
            progress = PROGRESS.search(line)
            if progress:
                eta, iteration, loss = progress.groups()
                done = f"{int(iteration) + 1}/{args.iterations}"
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
