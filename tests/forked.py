"""Processes for tests, forked from one that has imported what they need.

That takes hundredths of a second; for Python and torch to start takes three seconds of a core.
"""

import multiprocessing
import os
import resource
import sys
import time

import torch.distributed as dist

# A process of its own imports these, once for all test files of a worker.
_PRELOADED = [
    *("torch", "torch._dynamo", "torch.distributed", "torch.utils.tensorboard"),
    *("evonorm_plugins.layers", "evonorm_plugins.classification.run", "evonorm_plugins.cli.eval"),
    *("biggan.run", "tests.ranks", __name__),
    "evonorm_plugins.integrations.detectron2.train",  # where there is Detectron2
]


def context():
    """What :mod:`multiprocessing` offers, for processes that are forked from the preloaded one."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOADED)
    return found


class Command:
    """A command in processes of its own, as a :class:`subprocess.Popen` of text.

    It gets this process's environment and folder, and leads a process group.

    Args:
        main: an importable ``main(arguments)``, which returns the exit status.
        folder: an empty one, for what the processes print.
        ranks: number of processes, which find each other as those of torchrun do. Unlike those,
            none is ended when another fails.
        file_kib: the largest file that they can write.
    """

    def __init__(self, main, arguments, folder, *, ranks=1, file_kib=None):
        self._folder, environment = folder, [dict(os.environ) for _ in range(ranks)]
        if ranks > 1:
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port}
            address |= {"TORCHELASTIC_USE_AGENT_STORE": True, "WORLD_SIZE": ranks}
            for rank, values in enumerate(environment):
                mine = {**address, "RANK": rank, "LOCAL_RANK": rank}
                values |= {key: str(value) for key, value in mine.items()}
        arguments = [str(a) for a in arguments]
        self._processes = [
            context().Process(
                target=_run,
                args=(main, arguments, folder, environment[rank], os.getcwd(), file_kib),
            )
            for rank in range(ranks)
        ]
        for process in self._processes:
            process.start()
        self.pid = self._processes[0].pid

    @property
    def returncode(self):
        """None while one runs; negative where a signal ended it; of several that of one failed."""
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        for process in self._processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def kill(self):
        for process in self._processes:
            process.kill()

    def communicate(self, timeout=60):
        """What they have printed, ``(stdout, stderr)``, when they have ended."""
        give_up = time.monotonic() + timeout
        for process in self._processes:
            process.join(max(0, give_up - time.monotonic()))
        late = self.returncode is None
        if late:
            self.kill()
            for process in self._processes:
                process.join()
        out, err = (
            "".join(path.read_text() for path in sorted(self._folder.glob(f"*.{name}")))
            for name in ("stdout", "stderr")
        )
        assert not late, f"still running after {timeout} s\n{out}{err}"
        return out, err


def _run(main, arguments, folder, environment, working_folder, file_kib):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(working_folder)
    for stream in (sys.stdout, sys.stderr):
        name = f"{environment.get('RANK', 0)}.{stream.name.strip('<>')}"
        with open(folder / name, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    if file_kib:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_kib * 1024, file_kib * 1024))
    sys.exit(main(arguments))
