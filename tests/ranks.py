"""Processes that form a group, for tests: what every one of them gives for the same cases."""

import datetime
import faulthandler
import os
import sys
import time
import traceback

import torch
import torch.distributed as dist

from tests import forked


def run(function, cases, ranks, folder, timeout=120):
    """``[{key: function(case, rank), ...}, ...]`` by rank, of ``cases`` ``{key: case}``.

    Args:
        function: importable; runs in a gloo group of ``ranks`` processes.
        folder: an empty one, for what the processes exchange.

    Raises:
        RuntimeError: a process failed or did not end; holds what all of them printed.
    """
    torch.save(cases, folder / "cases.pt")
    processes = [
        forked.context().Process(target=_run_rank, args=(function, folder, rank, ranks))
        for rank in range(ranks)
    ]
    for p in processes:
        p.start()
    give_up = time.monotonic() + timeout
    # Once a rank has failed, the others would wait for it.
    while any(p.exitcode is None for p in processes) and not any(p.exitcode for p in processes):
        if time.monotonic() > give_up:
            break
        time.sleep(0.02)
    codes = [p.exitcode for p in processes]
    for p in processes:
        p.kill()
        p.join()
    if any(codes) or None in codes:
        logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
        raise RuntimeError(f"exit codes {codes} (None: still running)\n" + "\n".join(logs))
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _run_rank(function, folder, rank, ranks):
    with open(folder / f"{rank}.log", "w", buffering=1) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        # Shows where it hangs and ends it, even where the test that started it is gone.
        faulthandler.dump_traceback_later(110, exit=True, file=log)
        try:
            _run_cases(function, folder, rank, ranks)
        except BaseException:
            traceback.print_exc(file=log)
            raise


def _run_cases(function, folder, rank, ranks):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=30),
    )
    cases = torch.load(folder / "cases.pt")
    results = {key: function(case, rank) for key, case in cases.items()}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
