"""The processes of a run, as ``torchrun`` starts them, and their devices.

One process needs no torchrun. A training and a scoring join with :class:`Ranks`; what is called
within them, and is told nothing, asks :meth:`Ranks.current`.
"""

import contextlib
import datetime
import os
import re
import signal
import threading

import torch
import torch.distributed as dist

from evonorm_plugins.errors import ConfigError, InputError, LostRankError, RunError


def pick_device(name="auto", local=None):
    """The device that a name means.

    Args:
        name: "auto" or None (a GPU where there is one), "cpu", "cuda" or "cuda:1".
        local: number of this process among several of this machine; each has a GPU of its own.

    Raises:
        ConfigError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    seen = f"this torch sees {count or 'no'} CUDA device{'s' if count > 1 else ''}"
    name = ("cuda" if count else "cpu") if name in (None, "auto") else str(name)
    asked = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not asked:
        raise ConfigError(f"device={name!r} is no device: auto, cpu, cuda and cuda:1 are")
    if name == "cpu":
        return torch.device("cpu")
    if not count:
        raise ConfigError(f"device={name}: {seen}; auto and cpu run")
    if local is not None and asked[1]:
        raise ConfigError(f"device={name}: every process takes a GPU of its own with device=cuda")
    index = int(asked[1] or 0) if local is None else local
    if index >= count and local is not None:
        raise ConfigError(
            f"{local + 1} ranks or more on this machine, but {seen}: lower --nproc_per_node"
        )
    if index >= count:
        raise ConfigError(f"device={name}: {seen}, the last is cuda:{count - 1}")
    return torch.device("cuda", index)


class Ranks:
    """This process among those of a run.

    ``control`` is a group on the CPUs for what is no tensor of training: whether to stop, random
    states. It waits long, since a rank may be writing a checkpoint.

    Used as a context, it leaves the group at the end, and raises :class:`LostRankError` for an
    error that says that another rank is gone. After any error it leaves the group as it is: it
    cannot be taken down while others wait in it.

    Args:
        device: see :func:`pick_device`.
        timeout_minutes: of a collective operation, before a rank is taken for dead.

    Raises:
        ConfigError: the device asked for is not there.
    """

    def __init__(self, device="auto", timeout_minutes=10.0):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0)) if self.size > 1 else None
        self.device, self.control = pick_device(device, local), None
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            timeout = datetime.timedelta(minutes=timeout_minutes)
            dist.init_process_group(backend, timeout=timeout)
            self.control = dist.new_group(
                backend="gloo", timeout=max(timeout, datetime.timedelta(hours=1))
            )
            Ranks._joined = self

    _joined = None  # the one that has made the group

    @classmethod
    def current(cls):
        """This process in the group that it has joined, whoever made it; else alone.

        Where it was not made by this class it has no device and no ``control``.
        """
        joined = dist.is_available() and dist.is_initialized()
        if joined and cls._joined is not None:
            return cls._joined
        ranks = cls.__new__(cls)
        ranks.rank = dist.get_rank() if joined else 0
        ranks.size = dist.get_world_size() if joined else 1
        ranks.device = ranks.control = None
        return ranks

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is None:
            self.close()
        elif self.size > 1 and self.says_lost(error):
            text = " ".join(str(error).split())[:200]
            raise LostRankError(f"another rank is gone: {text}") from None

    @property
    def is_main(self):
        return self.rank == 0

    def any(self, flag):
        """Whether ``flag`` is true on any rank; every rank calls this."""
        if self.size == 1:
            return bool(flag)
        flags = torch.tensor([float(bool(flag))])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def sum(self, values):
        """The sum over ranks of a tensor on the device."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, values):
        """The mean over ranks of a tensor on the device."""
        return self.sum(values) / self.size if self.size > 1 else values

    def broadcast(self, tensors):
        """Give every rank the main rank's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, values):
        """Every rank's tensor on the CPU, of one shape, in a list; every rank calls this."""
        if self.size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values, group=self.control)
        return gathered

    def gather_objects(self, value):
        """What every rank has, in a list; for small objects, which are pickled."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def main_first(self, function):
        """What ``function()`` returns, called on the main rank before the others."""
        if self.is_main:
            result = function()
        if self.size > 1:
            dist.barrier(group=self.control)
        return result if self.is_main else function()

    def close(self):
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            Ranks._joined = None

    @staticmethod
    def says_lost(error):
        if not isinstance(error, RuntimeError) or isinstance(error, InputError | RunError):
            return False
        text = str(error).lower()
        return isinstance(error, dist.DistError) or any(
            word in text for word in ("gloo", "nccl", "connection", "timed out", "peer")
        )


@contextlib.contextmanager
def sigterm_as_interrupt():
    """SIGTERM as Ctrl-C, until the end of the block."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """Remembers that SIGTERM or Ctrl-C came, for the loop to end at the next step's end.

    A second Ctrl-C ends the process at once. In another thread than the main one, which signals do
    not reach, it does nothing.
    """

    def __init__(self):
        self.name = None
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        if number == signal.SIGINT and self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
