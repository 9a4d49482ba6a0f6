"""What benchmarks measure with: interleaved timing, kept memory, the floors, processes apart."""

import itertools
import multiprocessing
import os
import platform
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

import evonorm_plugins
from evonorm_plugins.errors import RunError

MIB = 2**20
LEAST_ROUNDS = 3
# Larger than the caches of any GPU.
FLUSH_BYTES = 256 * MIB
BUSY_LOAD = 0.5
# Not getrusage: a process begins with the peak of the one that started it.
STATUS = Path("/proc/self/status")


class CpuClock:
    def flush(self):
        pass

    def mark(self):
        return time.perf_counter_ns()

    def milliseconds(self, start, end):
        return (end - start) / 1e6


class CudaClock:
    """Times of the device, by events. ``flush`` empties its L2 cache."""

    def __init__(self):
        self._scratch = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def flush(self):
        torch.cuda.synchronize()
        self._scratch.zero_()

    def mark(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start, end):
        end.synchronize()
        return start.elapsed_time(end)


def make_clock(device):
    return CudaClock() if device == "cuda" else CpuClock()


class Layer:
    """A module on a tensor, as one of the competitors."""

    def __init__(self, module, x, dy):
        self.module, self.x, self.dy = module, x, dy
        self.parameters = list(module.parameters())

    def clear(self):
        for tensor in (self.x, *self.parameters):
            tensor.grad = None

    def forward(self):
        return self.module(self.x)

    def backward(self, y):
        y.backward(self.dy)

    def kept_bytes(self):
        return kept_bytes(self.forward, [self.x, *self.parameters, *self.module.buffers()])


class Copies:
    """A floor: the tensors that a layer has to read and to write, copied.

    Forward reads x and writes y: one copy. Backward reads x and dy and writes dx: one and a half.
    With ``fresh`` y and dx are allocated each time, as a layer has to; else they exist already.
    """

    def __init__(self, x, dy, fresh):
        self.x, self.fresh, self.dx = x.detach(), fresh, None
        # Without the order of dimensions, half a tensor is half of its memory in any layout.
        self.half = dy.as_strided((dy.numel() // 2,), (1,))
        self.half_out = torch.empty_like(self.half)
        self.out = None if fresh else torch.empty_like(self.x)

    def clear(self):
        self.dx = None

    def _copy(self):
        return self.x.clone() if self.fresh else self.out.copy_(self.x)

    def forward(self):
        return self._copy()

    def backward(self, y):
        self.half_out.copy_(self.half)
        self.dx = self._copy()

    def kept_bytes(self):
        return 0


def kept_bytes(forward, known):
    """Bytes that autograd keeps of ``forward()``: whole storages, but for those of ``known``."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Referred to until the end: an address that is free again could be given to another tensor.
        result = forward()
    ours = {tensor.untyped_storage().data_ptr() for tensor in known}
    storages = (tensor.untyped_storage() for tensor in kept)
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del result
    return sum(size for address, size in sizes.items() if address not in ours)


def time_phases(competitor, clock, mode="train"):
    """Milliseconds of one run of every phase of ``mode``: ``{phase: ms}``.

    An untimed forward pass comes first: the caches are full of the competitor before. Gradients are
    dropped outside of the time; the output of "fwd+bwd" is freed inside of it, as in training.
    """
    competitor.clear()
    competitor.forward()
    clock.flush()
    start = clock.mark()
    y = competitor.forward()
    times = {"forward": clock.milliseconds(start, clock.mark())}
    if mode == "inference":
        return times
    clock.flush()
    start = clock.mark()
    competitor.backward(y)
    times["backward"] = clock.milliseconds(start, clock.mark())
    del y
    competitor.clear()
    clock.flush()
    start = clock.mark()
    y = competitor.forward()
    competitor.backward(y)
    del y
    times["fwd+bwd"] = clock.milliseconds(start, clock.mark())
    competitor.clear()
    return times


def interleave(runs, repeats, seconds=float("inf"), warmup=2, seed=0, now=time.monotonic):
    """Call every run once a round, in an order drawn for each round anew.

    Whatever slows the machine down for a while slows down every competitor.

    Args:
        runs: ``{key: function}``; a function returns ``{phase: ms}``.
        repeats: rounds after the ``warmup`` ones.
        seconds: no round begins later than that after the warm-up; ``LEAST_ROUNDS`` do anyway.

    Returns:
        ``{key: {phase: [ms of each round]}}``
    """
    generator = random.Random(seed)
    times = {key: {} for key in runs}
    order = list(runs)
    began = None
    for number in itertools.count(1 - warmup):
        if number == 1:
            began = now()
        late = number > LEAST_ROUNDS and now() - began >= seconds
        if number > repeats or (number > 0 and late):
            return times
        say(f"  round {number}" if number > 0 else "  warm-up")
        generator.shuffle(order)
        for key in order:
            measured = runs[key]()
            if number > 0:
                for phase, value in measured.items():
                    times[key].setdefault(phase, []).append(value)


def quantiles(values):
    """``{"median_ms", "p10_ms", "p90_ms"}`` of measured milliseconds."""
    ranks = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    found = torch.tensor(values, dtype=torch.float64).quantile(ranks).tolist()
    return {k: round(v, 6) for k, v in zip(("median_ms", "p10_ms", "p90_ms"), found, strict=True)}


def environment(device):
    """Whatever times depend on besides the competitor."""
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "evonorm_plugins": evonorm_plugins.__version__,
    }


def _device_name(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return model.group(1) if model else platform.processor() or platform.machine()


def warn_if_busy(load=None):
    """Say on stderr that the load average, of now by default, is one of a machine at work."""
    load = os.getloadavg()[0] if load is None else load
    if load > BUSY_LOAD:
        say(
            f"warning: the load average is {load:.2f}: something else is or was running, "
            "times may be too long"
        )


def say(message):
    """Progress and warnings: results alone go to stdout."""
    print(message, file=sys.stderr, flush=True)


def apart(function, *arguments):
    """What a function returns in a process of its own, whose peak of memory is its own, too.

    Raises:
        RunError: the process died, most likely for want of memory.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's peak
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RunError("the process that measures memory died; is there enough?") from None


def used_bytes(device, *, peak=False):
    """Bytes of tensors on a GPU, or of this process on a CPU: now, or at most so far.

    Raises:
        RunError: this system does not say.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if not STATUS.exists():
        raise RunError(f"memory on the CPU is read from {STATUS}, which this system has not")
    key = "VmHWM" if peak else "VmRSS"
    kib = re.search(rf"{key}:\s*(\d+) kB", STATUS.read_text())
    return int(kib.group(1)) * 1024
