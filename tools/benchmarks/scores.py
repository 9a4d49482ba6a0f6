"""IS and FID of the same images as whole processes: ours, torch-fidelity's and pytorch-fid's.

The commands take turns; what is reported are medians of seconds and the largest peak of resident
memory, and ours over the two tools after each other, torch-fidelity for IS and pytorch-fid for FID.
The images are drawn: smooth colours with noise, PNGs of two folders.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import InputError, RunError
from evonorm_plugins.text_table import aligned

EXAMPLES = """
examples:
  2,000 generated and 2,000 real images of 64 px, three rounds:
    tools/benchmark.py scores --inception-weights pt_inception-2015-12-05-6726825d.pth
  quicker, with weights that were drawn (random_inception in tests/metrics/conftest.py):
    tools/benchmark.py scores --inception-weights drawn.pth --images 100 --rounds 1
"""
# What the two tools call the file in torch's hub folder.
_NAMES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
)


def add_arguments(parser):
    add = parser.add_argument
    add("--inception-weights", required=True, metavar="FILE", help="as of evonorm eval gan")
    add("--images", type=count, default=2000, help="of each set (default: %(default)s)")
    add("--size", type=count, default=64, help="pixels (default: %(default)s)")
    add("--rounds", type=count, default=3, help="(default: %(default)s)")
    add("--json", action="store_true", help="JSON instead of a table")


def run(args):
    if not os.path.isfile(args.inception_weights):
        raise InputError(f"--inception-weights: there is no file {args.inception_weights}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sets = [_drawn(root / name, args, seed) for seed, name in enumerate(("fake", "real"))]
        hub = root / "torch/hub/checkpoints"
        hub.mkdir(parents=True)
        for name in _NAMES:
            (hub / name).symlink_to(Path(args.inception_weights).resolve())
        commands = _commands(args, *sets)
        measured = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                measured[name].append(_measured(command, root))
    rows = {
        name: {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "peak_mib": max(peak for _, peak in runs),
        }
        for name, runs in measured.items()
    }
    tools = rows["pytorch-fid, FID"]["seconds"] + rows["fidelity, IS"]["seconds"]
    for row in rows.values():
        row["of_both_tools"] = row["seconds"] / tools
    print(json.dumps(rows, indent=2) if args.json else _table(rows))


def _drawn(folder, args, seed):
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(seed)
    for k in range(args.images):
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize([args.size] * 2, Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-20, 21, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k:05d}.png")
    return folder


def _commands(args, fake, real):
    ours = [sys.executable, "-m", "evonorm_plugins.cli", "eval", "gan", "--is", "--fid", "--quiet"]
    ours += ["--fake", fake, "--real", real, "--inception-weights", args.inception_weights]
    ours += ["--device", "cpu"]
    fidelity = [sys.executable, "-m", "torch_fidelity.fidelity", "--isc", "--cpu", "--silent"]
    fidelity += ["--input1", fake, "--no-cache", "--feature-extractor-weights-path"]
    return {
        "pytorch-fid, FID": [sys.executable, "-m", "pytorch_fid", fake, real, "--device", "cpu"],
        "fidelity, IS": [*fidelity, args.inception_weights],
        "ours, IS and FID": ours,
        "ours, IS and FID, --fast": [*ours, "--fast"],
    }


def _measured(command, root):
    """Seconds and peak of resident memory in MiB of a command that must succeed."""
    environment = {**os.environ, "TORCH_HOME": str(root / "torch")}
    with open(root / "log", "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        last = (root / "log").read_text().strip().splitlines()[-1:]
        raise RunError(f"{' '.join(map(str, command[:4]))} ... failed: {' '.join(last)}")
    return seconds, used.ru_maxrss / 1024


def _table(rows):
    cells = [["command", "seconds", "of both tools", "peak, MiB"]]
    for name, row in rows.items():
        cells.append([name, f"{row['seconds']:.1f}", f"{row['of_both_tools']:.2f}",
                      f"{row['peak_mib']:.0f}"])  # fmt: skip
    return aligned(cells)
