"""Tests that need Detectron2 are skipped, and say so, where it is not installed."""

import functools
import importlib
import importlib.util
import logging
import os
import sys
from pathlib import Path

# Before torch is imported, and for child processes too: several processes with threads of their own
# on few cores wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Read when the kernels' module is imported: without a GPU they run in Triton's interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parent.parent
NEEDS_DETECTRON2 = Path(__file__).parent / "integrations/detectron2"
# Those that take longest, in this order: a file is one process's, and one that starts last would
# run while the other processes have nothing left to do.
FIRST = [
    *("search/test_workers.py", "biggan/test_runs.py", "metrics/test_tools_agree.py"),
    *("classification/test_sweep.py", "integrations/detectron2/test_train.py"),
    *("integrations/detectron2/test_processes.py", "classification/test_train.py"),
    *("search/test_run.py", "metrics/test_processes.py"),
    *("integrations/detectron2/test_export.py", "biggan/test_refused.py", "tools/test_dist.py"),
]


@functools.cache
def missing_detectron2():
    """None, or why there is no Detectron2 and the command that installs it."""
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        message = Path(sys.prefix, "detectron2-missing.txt")
        if message.exists():
            return message.read_text().strip()
        requirement = (ROOT / "requirements/detectron2.txt").read_text().splitlines()[-1]
        return (
            f"Detectron2 cannot be imported ({error}). To install it: "
            f'{sys.executable} -m pip install --no-build-isolation "{requirement}"'
        )
    return None


@pytest.fixture(autouse=True)
def no_handlers_of_closed_streams():
    """Detectron2 leaves handlers behind that write to what pytest had captured and has closed."""
    for logger in list(logging.root.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", ())):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


class SkippedModule(pytest.Module):
    """A test file that is reported as skipped without being imported."""

    def collect(self):
        pytest.skip(missing_detectron2(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    # Such files import Detectron2 at their top, before any marker could be seen.
    if NEEDS_DETECTRON2 in module_path.parents and missing_detectron2():
        return SkippedModule.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    place = {Path(__file__).parent / name: k for k, name in enumerate(FIRST)}
    gone = [str(path) for path in place if not path.is_file()]
    if gone:
        raise pytest.UsageError(f"FIRST of {__file__} names what is no file: {', '.join(gone)}")
    items.sort(key=lambda item: place.get(item.path, len(place)))
    for item in items:
        if item.get_closest_marker("detectron2") and missing_detectron2():
            item.add_marker(pytest.mark.skip(reason=missing_detectron2()))


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory):
    """``run_ranks(function, cases, ranks)``: what every process of a group gives for the cases.

    See :func:`tests.ranks.run`.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    from tests import ranks

    def run_ranks(function, cases, number):
        return ranks.run(function, cases, number, tmp_path_factory.mktemp("ranks"))

    return run_ranks


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """``fork(main, arguments, ranks=1)``: a :class:`tests.forked.Command`."""
    from tests.forked import Command

    started = []

    def fork(main, arguments, **how):
        started.append(Command(main, arguments, tmp_path_factory.mktemp("printed"), **how))
        return started[-1]

    yield fork
    for command in started:
        command.kill()


class BlockMeans(torch.nn.Module):
    """A feature extractor that is quick: means over a grid of blocks, and 10 logits."""

    def __init__(self, side: int = 4):
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d(side)
        generator = torch.Generator().manual_seed(0)
        self.classes = torch.nn.Parameter(torch.randn(3 * side * side, 10, generator=generator))

    def forward(self, images):
        features = self.pool(images.float() / 255).flatten(1)
        return features, features @ self.classes


@pytest.fixture(scope="session")
def quick_extractor(tmp_path_factory):
    """Path of a TorchScript module with 48 features and 10 logits."""
    import warnings

    path = tmp_path_factory.mktemp("extractor") / "blocks.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(BlockMeans().eval()), path)
    return path


@pytest.fixture
def evaluate(capsys):
    """``evaluate(*arguments)``: ``(status, stdout, stderr)`` of evonorm-eval, in this process."""
    from evonorm_plugins.cli.eval import main

    def run(*arguments):
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def load_tool(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
