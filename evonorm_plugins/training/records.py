"""What a run leaves to read: JSON lines, TensorBoard, a progress bar."""

import contextlib
import json
import math
import sys
import time
from pathlib import Path

import yaml
from tqdm import tqdm

from evonorm_plugins.errors import NO_SPACE, NoSpaceError
from evonorm_plugins.files import replacing


class Records:
    """Written by the main rank; the others' calls do nothing.

    ``metrics.jsonl`` has a line for every record. A run that goes on from a checkpoint drops the
    lines of steps that it takes again.

    Args:
        options: plain values of the run, written as ``config.yaml``.
        folder: where everything is written.
        step, steps: where the run starts and ends.
        progress: whether a progress bar is shown.
    """

    def __init__(self, options, folder, step, steps, *, is_main=True, progress=True):
        self.folder, self.is_main, self.progress = Path(folder), is_main, progress
        self.started, self.first, self.steps = time.perf_counter(), step, steps
        self.sums, self.count, self.bar = None, 0, None
        if not is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(options, sort_keys=False))
        path = self.folder / "metrics.jsonl"
        kept = [r for r in read_records(path) if r["step"] <= step]
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self.lines = open(path, "a")  # noqa: SIM115
        self.board = _board(self.folder / "tensorboard", step)

    def start(self):
        """Show the progress bar; rates are counted from here."""
        self.started = time.perf_counter()
        if self.is_main and self.progress:
            self.bar = tqdm(
                total=self.steps,
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
        self.advance()

    def advance(self):
        """Move the progress bar by a step."""
        if self.bar:
            self.bar.update()

    def means(self, ranks):
        """Means over the steps since the last call and over ranks; every rank calls this."""
        means = ranks.mean(self.sums / self.count).tolist()
        self.sums, self.count = None, 0
        return dict(zip(self.names, means, strict=True))

    def line(self, step, values):
        """A JSON line, and its numbers to TensorBoard."""
        if not self.is_main:
            return
        clean = {k: None if _is_not_finite(v) else v for k, v in values.items()}
        try:
            self.lines.write(json.dumps({"step": step, **clean}) + "\n")
            self.lines.flush()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise NoSpaceError(f"no space left to write {self.lines.name}") from None
        for key, value in values.items():
            if self.board and isinstance(value, int | float):
                self.board.add_scalar(key, value, step)

    def show(self, **values):
        """Strings beside the progress bar."""
        if self.bar:
            self.bar.set_postfix(values)

    def say(self, text):
        """A line on stderr, above the progress bar."""
        if self.is_main:
            tqdm.write(text, file=sys.stderr)

    def close(self):
        if self.is_main:
            if self.bar:
                self.bar.close()
            # Every line was flushed: where this fails, that has failed before and was said.
            with contextlib.suppress(OSError):
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


def _board(folder, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        tqdm.write("TensorBoard is not installed: metrics.jsonl alone is written", file=sys.stderr)
        return None
    return SummaryWriter(folder, purge_step=step + 1)


def _is_not_finite(value):
    return isinstance(value, float) and not math.isfinite(value)
