"""What a run leaves to read: JSON lines, TensorBoard, a progress bar, a sheet of fixed samples."""

import json
import math
import sys
import time
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from biggan.checkpoint import replacing
from biggan.config import to_dict
from biggan.sampling import grid, sample_uint8, write_png
from biggan.spectral import singular_values

COLUMNS = 10  # classes on a sheet, at most


class Records:
    """Written by the main rank; the others' calls do nothing.

    ``metrics.jsonl`` has a line for every ``log_every`` steps and one for every score. A run that
    goes on from a checkpoint drops the lines of steps that it takes again.
    """

    def __init__(self, config, folder, step, is_main):
        self.config, self.folder, self.is_main = config, Path(folder), is_main
        self.started, self.first = time.perf_counter(), step
        self.sums, self.count = None, 0
        if not is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
        path = self.folder / "metrics.jsonl"
        kept = [r for r in read_records(path) if r["step"] <= step]
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self.lines = open(path, "a")  # noqa: SIM115
        self.board = _board(self.folder / "tensorboard", step)
        self.bar = None

    def start(self):
        """Show the progress bar; rates are counted from here."""
        self.started = time.perf_counter()
        if self.is_main:
            self.bar = tqdm(
                total=self.config.steps,
                initial=self.first,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                # Not a line every tenth of a second where nobody looks on.
                mininterval=0.2 if sys.stderr.isatty() else 10,
            )

    def add(self, names, values):
        """Take in the numbers of a step, without waiting for the device."""
        self.sums = values if self.sums is None else self.sums + values
        self.names, self.count = names, self.count + 1
        if self.is_main:
            self.bar.update()

    def means(self, ranks):
        """Means over the steps since the last call and over ranks; every rank calls this."""
        means = ranks.mean(self.sums / self.count).tolist()
        self.sums, self.count = None, 0
        return dict(zip(self.names, means, strict=True))

    def write(self, step, values, trainer):
        """A line of numbers, with rates and the largest singular values."""
        if not self.is_main:
            return
        seconds = time.perf_counter() - self.started
        rate = (step - self.first) / seconds
        for name, module in (("g", trainer.generator), ("d", trainer.discriminator)):
            layers, sigmas = singular_values(module)
            largest = int(sigmas.argmax())
            values[f"{name}_largest_singular_value"] = sigmas[largest].item()
            values[f"{name}_largest_singular_value_of"] = layers[largest]
        values["images_per_second"] = rate * trainer.images_per_step
        values["seconds"] = seconds
        self.line(step, values)
        if not self.bar:
            return
        shown = ("d_loss", "g_loss", "d_accuracy_real", "d_accuracy_fake")
        self.bar.set_postfix(
            {k.replace("accuracy", "acc"): f"{values[k]:.3f}" for k in shown}
            | {"img/s": f"{values['images_per_second']:.1f}"}
        )

    def line(self, step, values):
        """A JSON line, and its numbers to TensorBoard."""
        if not self.is_main:
            return
        clean = {k: None if _is_not_finite(v) else v for k, v in values.items()}
        self.lines.write(json.dumps({"step": step, **clean}) + "\n")
        self.lines.flush()
        for key, value in values.items():
            if self.board and isinstance(value, int | float):
                self.board.add_scalar(key, value, step)

    def sheet(self, step, images):
        """Write the sheet of fixed samples ``(N, 3, H, W)`` of a step."""
        if self.is_main:
            sheet = grid(images, min(self.config.num_classes, COLUMNS))
            write_png(sheet, self.folder / "samples" / f"{step:07d}.png")
            if self.board:
                self.board.add_image("samples", sheet, step)

    def say(self, text):
        """A line on stderr, above the progress bar."""
        if self.is_main:
            tqdm.write(text, file=sys.stderr)

    def close(self):
        if self.is_main:
            if self.bar:
                self.bar.close()
            self.lines.close()
            if self.board:
                self.board.close()


def read_records(path):
    """The records of a ``metrics.jsonl``, a last line that was cut off left out."""
    records = []
    for line in Path(path).read_text().splitlines() if Path(path).is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def fixed_samples(generator, config):
    """The same samples at every step: uint8 ``(rows * columns, 3, H, W)``, a class a column."""
    columns = min(config.num_classes, COLUMNS)
    classes = [k * config.num_classes // columns for k in range(columns)]
    n = columns * config.sample_rows
    # The moving statistics of the average: standing ones would take longer than what is shown.
    return torch.cat(list(sample_uint8(generator, n, classes=classes, seed=config.seed)))


def diversity(images):
    """Mean over pixels of the standard deviation over samples uint8 ``(N, 3, H, W)``, in levels."""
    return images.float().std(0).mean().item()


def _board(folder, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        tqdm.write("TensorBoard is not installed: metrics.jsonl alone is written")
        return None
    return SummaryWriter(folder, purge_step=step + 1)


def _is_not_finite(value):
    return isinstance(value, float) and not math.isfinite(value)
