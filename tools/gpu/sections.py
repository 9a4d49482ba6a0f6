"""What a process of the check does: its sections, case by case, as long as there is time."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import time

import torch
import triton

from evonorm_plugins.benchmarks import measure, stub

# Where packages that rivals come from say their versions.
PACKAGES = ("timm", "torchvision", "apex", "liger-kernel")


class Section:
    """Cases, each recorded when it is done.

    Attributes:
        dry_run: tiny sizes on a CPU.
        device: "cuda", or "cpu" in a dry run.
    """

    def __init__(self, args):
        self.dry_run, self.part = args.dry_run, args.part
        self.device = "cpu" if args.dry_run else "cuda"
        self._path, self._until, self._longest = args.records, args.until, 0.0

    def record(self, kind, **values):
        with open(self._path, "a") as file:
            print(json.dumps({"kind": kind, **values}), file=file)

    def skip(self, name, reason):
        self.record("skipped", name=name, reason=reason)

    def seconds_left(self):
        return self._until - time.time()

    def mine(self, cases):
        """The cases of this process: every one of so many."""
        part, parts = self.part
        return cases[part - 1 :: parts]

    def attempt(self, name, function, *arguments):
        """Call a function, or record that there was no time for it, or what it raised.

        Returns what it returns, or None.
        """
        began = time.monotonic()
        # A case that is begun is finished: not the one that may take longer than is left.
        if self.seconds_left() < self._longest:
            return self.skip(name, "there was no time left")
        measure.say(name)
        try:
            return function(*arguments)
        except torch.OutOfMemoryError:
            self.skip(name, "this device has too little memory for it")
        except ModuleNotFoundError as error:
            self.skip(name, f"{error.name} is not installed")
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            detail = f"{type(error).__name__}: {reason}"
            self.record("check", name=name, verdict="FAIL", detail=detail)
            if "CUDA error" in detail:  # nothing works in this process from now on
                raise
        finally:
            self._longest = max(self._longest, time.monotonic() - began)
        return None

    def check(self, name, function, *arguments):
        """Attempt a function that returns None, or what is wrong, and record the verdict.

        It may raise :class:`NotHere`.
        """

        def judged():
            try:
                wrong = function(*arguments)
            except NotHere as error:
                self.skip(name, str(error))
                return
            verdict = "FAIL" if wrong else "PASS"
            self.record("check", name=name, verdict=verdict, detail=wrong or "")

        self.attempt(name, judged)


class NotHere(Exception):
    """A check that this machine cannot do; the message says why."""


def run_sections(args):
    section = Section(args)
    torch.manual_seed(0)
    section.record("environment", **environment(section.device))
    section.launches = None
    if section.dry_run and "host" in args.sections:
        section.launches = stub.install().launches
    for name in args.sections:
        module, _, function = SECTIONS[name].partition(":")
        getattr(importlib.import_module(f"gpu.{module}"), function)(section)


SECTIONS = {
    "accuracy": "accuracy:run_accuracy",
    "sanitized": "accuracy:run_sanitized",
    "runtime": "runtime:run_runtime",
    "warm": "layers:run_warm",
    "layers": "layers:run_timed",
    "host": "layers:run_queued",
    "models": "models:run_models",
}


def environment(device):
    """Device and versions."""
    found = {
        **measure.environment(device),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["memory_GiB"] = round(properties.total_memory / 2**30, 1)
        found["devices"] = torch.cuda.device_count()
        found["cudnn"] = torch.backends.cudnn.version()
    for package in PACKAGES:
        found[package] = version(package)
    return found


def is_there(module):
    """Whether a module could be imported; its packages are, it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def version(package):
    """The version of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
