"""Several processes as torchrun starts them; all of it does nothing in one process."""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def count():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


@contextlib.contextmanager
def group(device):
    """Join the processes that torchrun started, if it did; gives this process its device.

    Args:
        device: "cuda", "cpu", "cuda:1" ...
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield torch.device(device)
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # One process may wait long for the one that computes scores.
    wait = datetime.timedelta(hours=4)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=wait)
    try:
        yield torch.device(device)
    finally:
        dist.destroy_process_group()


def add_up(tensor):
    """Sum over processes, in every process."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def main_first(function):
    """What ``function()`` returns, called in the main process before the others."""
    if is_main():
        result = function()
    if count() > 1:
        dist.barrier()
    return result if is_main() else function()


def gather(value):
    """List of what each process has, in every process; for small objects."""
    if count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values
