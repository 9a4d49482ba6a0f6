"""The processes of a run, as ``torchrun`` starts them; one process needs no torchrun."""

import datetime
import os
import signal
import threading

import torch
import torch.distributed as dist

from evonorm_plugins.errors import ConfigError


class Ranks:
    """This process among those of a run.

    ``control`` is a group on the CPUs for what is no tensor of training: whether to stop, random
    states. It waits long, since a rank may be writing a checkpoint.

    Raises:
        ConfigError: the device asked for is not there.
    """

    def __init__(self, device="auto", timeout_minutes=10.0):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = self._device(device)
        self.control = None
        if self.size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            timeout = datetime.timedelta(minutes=timeout_minutes)
            dist.init_process_group(backend, timeout=timeout)
            self.control = dist.new_group(
                backend="gloo", timeout=max(timeout, datetime.timedelta(hours=1))
            )

    @property
    def is_main(self):
        return self.rank == 0

    def _device(self, name):
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu":
            return torch.device("cpu")
        if name != "cuda" or not torch.cuda.is_available():
            raise ConfigError(f"device={name}: this torch sees {self._seen()}")
        if self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"{self.local + 1} ranks or more on this machine, but {self._seen()}: lower "
                "--nproc_per_node"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def _seen(self):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"{count} CUDA devices" if count else "no CUDA device; auto and cpu run"

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

    @staticmethod
    def is_lost(error):
        """Whether a RuntimeError says that another rank is gone."""
        text = str(error).lower()
        return isinstance(error, dist.DistError) or any(
            word in text for word in ("gloo", "nccl", "connection", "timed out", "peer")
        )

    def close(self):
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


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
