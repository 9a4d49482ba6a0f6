"""The command: its options, the processes that do the work, and what comes of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import ConfigError, RunError
from evonorm_plugins.files import check_output, replacing

EXAMPLES = """
examples:
  make gpu
  tools/gpu_check.py --out results
  tools/gpu_check.py --dry-run
"""
NAMES = ("gpu_check.json", "gpu_check.md")
SECONDS = 460  # of all processes; what they write takes the rest of eight minutes
GRACE = 10  # seconds that a process may take to end by itself
SCRIPT = Path(__file__).resolve().parents[1] / "gpu_check.py"


@dataclass
class Step:
    """Sections that run in one process, or in several that share the cases."""

    sections: tuple
    seconds: float  # what earlier steps leave over comes on top
    processes: int = 1
    prefix: tuple = ()  # of the command line
    environment: dict = field(default_factory=dict)
    optional: bool = False  # others find what is wrong


def add_arguments(parser):
    add = parser.add_argument
    add("--out", type=Path, default=Path(), metavar="FOLDER", help=f"for {' and '.join(NAMES)}")
    add("--force", action="store_true", help="replace files that are not of this command")
    add(
        "--dry-run",
        action="store_true",
        help="tiny sizes on a CPU, by Triton's interpreter and a stub of a driver: tries this "
        "program; its times mean nothing",
    )
    # Of the processes that this command starts.
    add("--sections", nargs="+", help="(for this command itself)")
    add("--records", type=Path, help="(for this command itself)")
    add("--until", type=float, help="(for this command itself)")
    add("--part", type=count, nargs=2, default=(1, 1), help="(for this command itself)")


def run(args):
    if args.sections:
        from gpu.sections import run_sections

        return run_sections(args)
    for name in NAMES:
        check_output(args.out / name, name="--out", force=args.force, ours=is_ours)
    check_machine(args.dry_run)
    began = time.monotonic()
    records = []
    if args.dry_run or not find_sanitizer():
        reason = "a dry run has no device" if args.dry_run else "it is not installed"
        records.append(skipped("compute-sanitizer", reason))
    todo = steps(args.dry_run)
    for number, step in enumerate(todo):
        later = sum(other.seconds for other in todo[number + 1 :])
        seconds = SECONDS - later - (time.monotonic() - began)
        records += run_step(args, step, seconds)
    return write(args, records, time.monotonic() - began)


def is_ours(path):
    with open(path, "rb") as file:
        return b"gpu_check" in file.read(200)


def check_machine(dry_run):
    """Raise ConfigError where there is nothing to check."""
    import torch

    from evonorm_plugins.kernels import backend

    try:
        backend("triton")
    except RuntimeError as error:
        raise ConfigError(str(error)) from None
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device; --dry-run tries this program without one")


def steps(dry_run):
    """What is done, in this order."""
    if dry_run:
        once = {"TORCH_COMPILE_DISABLE": "1", "TRITON_INTERPRET": "0"}
        return [
            Step(("accuracy", "runtime"), 20, environment={"TRITON_INTERPRET": "1"}),
            Step(("layers", "host", "models"), 20, environment=once),
        ]
    many = max(1, min(8, (os.cpu_count() or 2) // 2))
    found = [Step(("accuracy",), 100, many), Step(("runtime",), 30)]
    sanitizer = find_sanitizer()
    if sanitizer:
        command = (sanitizer, "--tool", "memcheck", "--error-exitcode", "9")
        # Its own memory for each tensor: what is read beside one is seen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found.append(Step(("sanitized",), 45, prefix=command, environment=alone))
    # What is compiled first, by many processes, is then found on the disk by the one that measures.
    return [
        *found,
        Step(("warm",), 90, many, optional=True),
        Step(("layers",), 100),
        Step(("host",), 15),
        Step(("models",), 80),
    ]


def find_sanitizer():
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(usual) if usual.is_file() else None)


def run_step(args, step, seconds):
    """The records of a step; what became of processes that did not end well is among them."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        running = [
            start(args, step, part, Path(folder, str(part)), seconds)
            for part in range(1, step.processes + 1)
        ]
        end = time.monotonic() + seconds + GRACE
        try:
            for part, process in enumerate(running, 1):
                status = wait(process, end)
                records += read(Path(folder, str(part)))
                if status:
                    what = skipped if step.optional else failure
                    records.append(what(f"process of {' '.join(step.sections)}", status))
        finally:  # also where somebody interrupts
            for process in running:
                stop(process)
    return records


def wait(process, end):
    """None, or how a process ended that did not end well; it is stopped when its time is over."""
    try:
        status = process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        stop(process)
        return "it took too long and was stopped"
    return f"exit status {status}" if status else None


def stop(process):
    """Stop a process and what it has started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(args, step, part, path, seconds):
    command = [*step.prefix, sys.executable, str(SCRIPT), "--sections", *step.sections]
    command += ["--records", str(path), "--until", f"{time.time() + seconds:.1f}"]
    command += ["--part", str(part), str(step.processes), *(["--dry-run"] if args.dry_run else [])]
    # Results go to stdout at the end, nothing else.
    return subprocess.Popen(
        command,
        env={**os.environ, **step.environment},
        stdout=sys.stderr,
        start_new_session=True,  # a group of its own, which can be stopped as a whole
    )


def read(path):
    """Records that a process wrote; one that was stopped may have written half a line."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            found.append(skipped("a record", "it was cut off"))
    return found


def skipped(name, reason):
    return {"kind": "skipped", "name": name, "reason": reason}


def failure(name, detail):
    return {"kind": "check", "name": name, "verdict": "FAIL", "detail": str(detail)}


def write(args, records, seconds):
    """Both files and the table; the exit status says whether all is well."""
    from gpu.goals import judge
    from gpu.report import markdown

    by_kind = {}
    for record in records:
        by_kind.setdefault(record.pop("kind"), []).append(record)
    environment = (by_kind.pop("environment", None) or [{}])[0]
    goals = judge(by_kind, args.dry_run)
    result = {
        "command": "gpu_check",
        "dry_run": args.dry_run,
        "seconds": round(seconds, 1),
        "environment": environment,
        "goals": goals,
        **{name: by_kind.get(name, []) for name in ("check", "layer", "host", "model", "skipped")},
    }
    text = markdown(result)
    for name, content in zip(NAMES, (json.dumps(result, indent=1) + "\n", text), strict=True):
        with replacing(args.out / name) as partial:
            Path(partial).write_text(content)
    print(text, end="")
    failed = [goal["goal"] for goal in goals if goal["verdict"] == "FAIL"]
    if failed:
        raise RunError(f"{len(failed)} goals were missed: {'; '.join(failed)}")
