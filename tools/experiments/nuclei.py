#!/usr/bin/env python
"""Mask R-CNN from scratch on nuclei: norms against images a step, as the paper's Table 4 in small.

Every run sees as many images as detectron_configs/nuclei says, whatever its batch; rate, warm-up
and length follow. `run` goes on where it stopped, `collect` puts what the runs left into one small
file, `report` makes tables and pictures of that file alone.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import nuclei_report

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import DataError, InterruptedRunError, RunError, run_command
from evonorm_plugins.files import check_folder, check_output, holds_record, replacing

ROOT = Path(__file__).resolve().parents[2]
NORMS = ("GN", "EvoNormS0", "BN", "EvoNormB0")
BATCHES = (2, 8, 1)  # what says most, first
EXAMPLES = """
examples:
  the study, two runs at a time, one thread each; the same command goes on where it stopped:
    tools/experiments/nuclei.py run --data nuclei --output output/nuclei --jobs 2
  R-50, two images a step:
    tools/experiments/nuclei.py run --data nuclei --output output/nuclei --backbone R-50 --batches 2 --seeds 0
  one small file of what the runs left, with their pictures beside it:
    tools/experiments/nuclei.py collect --output output/nuclei --out docs/results/nuclei.json
  tables on stdout, and pictures, from that file:
    tools/experiments/nuclei.py report docs/results/nuclei.json --figures docs/figures

DIR of --data holds train/, val/, instances_train.json and instances_val.json, in COCO's format.
exit status: 0 done, 1 failed, or stopped by --minutes, SIGTERM or Ctrl-C, 2 bad input
"""  # noqa: E501


class Cell(NamedTuple):
    """One training."""

    backbone: str
    norm: str
    batch: int
    seed: int

    @property
    def name(self):
        return f"{self.backbone}_{self.norm}_batch{self.batch}_seed{self.seed}"

    @property
    def config(self):
        name = f"mask_rcnn_{self.backbone.replace('-', '_')}_FPN_{self.norm}"
        return ROOT / f"detectron_configs/nuclei/{name}.yaml"


def schedule(cfg, batch):
    """Keys and values with which a run of another batch sees the images that the config's sees."""
    images, solver = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER
    steps = solver.MAX_ITER * images // batch
    return {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": solver.BASE_LR * batch / images,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.WARMUP_ITERS": solver.WARMUP_ITERS * images // batch,
        "SOLVER.CHECKPOINT_PERIOD": max(1, solver.CHECKPOINT_PERIOD * images // batch),
        "TEST.EVAL_PERIOD": -(-steps // 4),
    }


def command(cell, cfg, data, folder, opts):
    """The command line of a run."""
    options = schedule(cfg, cell.batch) | {"SEED": cell.seed, "OUTPUT_DIR": folder}
    return [
        sys.executable, str(ROOT / "tools/train_net.py"), "--resume",
        "--config-file", str(cell.config),
        *(x for split in ("train", "val") for x in data_options(data, split)),
        *(str(x) for pair in options.items() for x in pair), *opts,
    ]  # fmt: skip


def data_options(data, split):
    json_file, images = Path(data, f"instances_{split}.json"), Path(data, split)
    if not json_file.is_file() or not images.is_dir():
        raise DataError(f"--data {data}: {json_file} or {images} is not there")
    return [f"--{split}-json", str(json_file), f"--{split}-images", str(images)]


def is_done(folder):
    """Whether a run has ended: with results, or because its loss was not finite."""
    return holds_record(folder / "results.json", "ap_percent") or (folder / "diverged").exists()


class Jobs:
    """Runs in processes of their own, at most ``most`` at a time.

    A folder is locked while its run is in progress, by the process of the run, so that another
    call of this program takes another run.
    """

    def __init__(self, most):
        self.most, self.running = most, {}

    def start(self, cell, folder, line):
        """Start a run, unless another program has it."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115, the process keeps it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return
        if not is_done(folder):  # it may have ended meanwhile
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
            with open(folder / "output.txt", "a") as output:
                process = subprocess.Popen(
                    line, stdout=output, stderr=output, env=environment, pass_fds=[lock.fileno()]
                )
            self.running[process] = (cell, folder)
            print(f"{time.strftime('%H:%M:%S')} {cell.name}", flush=True)
        lock.close()

    def collect(self):
        """See which runs have ended.

        Raises:
            RunError: one failed, and not because its loss was not finite.
        """
        for process, (cell, folder) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[process]
            if process.returncode == 0:
                # What a finished run does not go on from; each is as large as the last.
                for file in folder.glob("model_0*.pth"):
                    file.unlink()
                continue
            last = (folder / "output.txt").read_text().splitlines()[-1]
            if "not finite" not in last:
                raise RunError(f"{cell.name} ended with {process.returncode}: {last}")
            with replacing(folder / "diverged") as partial:
                partial.write_text(last + "\n")
            print(f"{cell.name}: {last}", flush=True)

    def stop(self):
        """End the runs, which save first."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()


def run(args):
    """Train what has not been trained."""
    from evonorm_plugins.integrations.detectron2.config import load_config
    from evonorm_plugins.training.ranks import sigterm_as_interrupt

    cells = [
        Cell(args.backbone, norm, batch, seed)
        for seed, batch, norm in itertools.product(args.seeds, args.batches, args.norms)
    ]
    check_folder(args.output, name="--output")
    folders = {cell: Path(args.output, cell.name) for cell in cells}
    lines = {
        cell: command(cell, load_config(cell.config)[0], args.data, folder, args.opts)
        for cell, folder in folders.items()
    }
    jobs, end = Jobs(args.jobs), time.monotonic() + 60 * (args.minutes or 1e9)
    with sigterm_as_interrupt(), contextlib.ExitStack() as stack:
        stack.callback(jobs.stop)
        for cell in cells:
            while len(jobs.running) >= args.jobs and time.monotonic() < end:
                time.sleep(0.5)
                jobs.collect()
            if time.monotonic() >= end:
                break
            if not is_done(folders[cell]):
                jobs.start(cell, folders[cell], lines[cell])
        while jobs.running and time.monotonic() < end:
            time.sleep(0.5)
            jobs.collect()
    done = sum(map(is_done, folders.values()))
    print(f"{done} of {len(cells)} runs are done")
    if done < len(cells):
        raise InterruptedRunError(f"{len(cells) - done} runs are not done: the same again goes on")


def collect(args):
    """One small file of what the runs left; pictures of R-18 with 2 images a step, seed 0."""
    check_output(args.out, ours=lambda path: holds_record(path, "runs"))
    cells = {}
    for folder in Path(args.output).glob("*_batch*_seed*"):
        backbone, norm, batch, seed = folder.name.split("_")
        cell = Cell(backbone, norm, int(batch.removeprefix("batch")), int(seed[len("seed") :]))
        if is_done(folder):
            cells[cell] = folder
    if not cells:
        raise DataError(f"--output {args.output} has no run that has ended")
    runs = [c._asdict() | nuclei_report.read_run(f, c.batch) for c, f in sorted(cells.items())]
    with replacing(args.out) as partial:
        lines = ",\n".join(json.dumps(r) for r in runs)
        partial.write_text(f'{{"runs": [\n{lines}\n]}}\n')
    print(args.out)
    for cell, folder in sorted(cells.items()):
        picture = folder / "predictions.png"
        if cell[0] == "R-18" and cell[2:] == (2, 0) and picture.is_file():
            out = Path(args.figures, f"nuclei_{cell.norm}.png")
            nuclei_report.shrink(picture, out)
            print(out)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run", help=run.__doc__)
    training.add_argument("--data", required=True, metavar="DIR")
    training.add_argument("--output", default="output/nuclei", metavar="DIR")
    training.add_argument("--backbone", default="R-18", choices=["R-18", "R-50"])
    training.add_argument("--norms", nargs="+", default=NORMS, metavar="NORM")
    training.add_argument("--batches", nargs="+", type=count, default=BATCHES, metavar="N")
    training.add_argument("--seeds", nargs="+", type=int, default=(0, 1), metavar="N")
    training.add_argument("--jobs", type=count, default=1, help="runs at a time (default: 1)")
    training.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    training.add_argument("opts", nargs="*", metavar="KEY VALUE", help="behind --: of the config")
    collecting = commands.add_parser("collect", help=collect.__doc__)
    collecting.add_argument("--output", default="output/nuclei", metavar="DIR")
    collecting.add_argument("--out", default="docs/results/nuclei.json", metavar="FILE")
    collecting.add_argument("--figures", default="docs/figures", metavar="DIR")
    reporting = commands.add_parser("report", help=nuclei_report.report.__doc__)
    reporting.add_argument("results", nargs="?", default="docs/results/nuclei.json")
    reporting.add_argument("--figures", default="docs/figures", metavar="DIR")
    args = parser.parse_args(argv)
    work = {"run": run, "collect": collect, "report": nuclei_report.report}[args.command]
    return run_command(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
