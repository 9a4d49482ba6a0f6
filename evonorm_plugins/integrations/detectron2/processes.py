"""The processes of a run: one for each GPU, or as many as are asked for on the CPUs of a machine.

Detectron2's ``launch`` starts them. What it lacks on CPUs, and what becomes of a run one of whose
processes fails, is here.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from evonorm_plugins import errors
from evonorm_plugins.errors import ConfigError, InputError, LostRankError, RunError, ending
from evonorm_plugins.integrations.quiet import silence_libraries
from evonorm_plugins.training.ranks import Ranks, pick_device

PATIENCE = 10  # seconds; the process that started the ranks knows of a dead one in hundredths


def check_processes(args: argparse.Namespace, device: str, batch: int | None = None) -> None:
    """Find out whether a run can have the processes that its command line asks for.

    Args:
        args: ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url`` of the command line.
        device: of the model, by name. On CPUs ``num_gpus`` is the number of processes.
        batch: images a step of all processes together; None where nothing is trained.

    Raises:
        ConfigError: they cannot be.
    """
    gpus, machines, seen = args.num_gpus, args.num_machines, torch.cuda.device_count()
    if gpus < 0 or machines < 1 or not 0 <= args.machine_rank < machines:
        raise ConfigError(
            f"--num-gpus {gpus} --num-machines {machines} --machine-rank {args.machine_rank}: "
            "ranks of machines count from 0"
        )
    if machines > 1 and args.dist_url == "auto":
        raise ConfigError(f"--num-machines {machines} needs --dist-url tcp://HOST:PORT")
    on_gpus = pick_device(device, local=0 if gpus > 1 else None).type == "cuda"
    if on_gpus and gpus > max(seen, 1):
        raise ConfigError(f"--num-gpus {gpus}: torch sees {seen} CUDA devices on this machine")
    size = max(gpus, 1) * machines
    if batch is not None and batch % size:
        raise ConfigError(
            f"--num-gpus {gpus} --num-machines {machines}: {batch} images a step cannot be split "
            f"evenly among {size} processes"
        )


def run_processes(work: Callable, args: argparse.Namespace, device: str, *given: Any) -> int:
    """Call ``work(*given)`` in every process of a run; returns the exit status.

    Args:
        work: importable.
        args: see :func:`check_processes`.
        device: "cpu" on a machine that has GPUs hides these from the processes.

    Raises:
        InputError, RunError: what the first process that failed has raised, or that it was ended
            from outside. The others of this machine are ended first: within 30 seconds, wherever
            they wait.
    """
    size = max(args.num_gpus, 1) * args.num_machines
    arguments = (work, given) if size > 1 else given
    hide = size > 1 and pick_device(device).type == "cpu"
    try:
        with original_errors(), _gpus_hidden(hide), _ended_together():
            launch(
                _work_among_others if size > 1 else work,
                max(args.num_gpus, 1),
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=arguments,
            )
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 1
    except ProcessExitedException as error:
        if error.signal_name is None:
            return error.exit_code
        rank = args.machine_rank * args.num_gpus + error.error_index
        raise RunError(
            f"rank {rank} of {size} was ended by {error.signal_name}, and so the others were; "
            "--resume goes on from the last checkpoint"
        ) from None
    return 0


def parallel(model: nn.Module, **options: Any) -> nn.Module:
    """``create_ddp_model`` of Detectron2, which also takes models on CPUs."""
    if all(p.device.type == "cpu" for p in model.parameters()):
        options["device_ids"] = None
    return create_ddp_model(model, **options)


@contextlib.contextmanager
def _ended_together() -> Iterator[None]:
    """Processes that are started within do not outlive it, as where it ends by a signal."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        left = set(multiprocessing.active_children()) - before
        for process in left:
            process.terminate()
        for process in left:
            process.join(PATIENCE)
            process.kill()


@contextlib.contextmanager
def _gpus_hidden(hide: bool) -> Iterator[None]:
    """Detectron2's processes form a group of NCCL wherever they see a GPU."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if hide:
        os.environ[name] = ""
    try:
        yield
    finally:
        if hide:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _work_among_others(work: Callable, given: tuple) -> None:
    """What a process does; its errors become those that :func:`original_errors` can read."""
    silence_libraries()
    # Whoever is ended because another rank failed leaves no temporary file behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # What torch sends where the parent is gone; shells let the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with original_errors():
            work(*given)
    except Exception as error:
        status, text = ending(error)
        if status is None:
            raise
        text = " ".join(text.split())
        if Ranks.says_lost(error):
            # The reason is another's. If that is one of this machine, it is seen to be gone, and
            # this one is ended, meanwhile.
            if comm.get_local_size() > 1:
                time.sleep(PATIENCE)
            raise LostRankError(f"rank {comm.get_rank()}: another rank is gone: {text}") from None
        raise (InputError if status == 2 else RunError)(text) from error


@contextlib.contextmanager
def original_errors() -> Iterator[None]:
    """Errors of this package that come from another process, as if they came from this one.

    There, they arrive as the text of a traceback.
    """
    try:
        yield
    except (InputError, RunError, ProcessRaisedException) as error:
        raised = re.findall(r"^evonorm_plugins\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
        if not raised:
            raise
        name, message = raised[-1]
        kind = InputError if issubclass(getattr(errors, name), InputError) else RunError
        raise kind(message) from None
