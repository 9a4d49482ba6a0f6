"""Every command of README and docs is one that works, as it is written."""

import argparse
import ast
import builtins
import importlib
import importlib.util
import json
import os
import re
import runpy
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from evonorm_plugins.cli import main as evonorm
from evonorm_plugins.configs import find_config
from tests.docs.blocks import (
    OUTPUT,
    PAGES,
    ROOT,
    commands,
    indented_blocks,
    python_blocks,
    shell_blocks,
)
from tests.metrics.coco_cases import random_case

PYTHON = [(page, line, source) for page in PAGES for line, source in python_blocks(page)]
# Blocks that train, or read what a training left: theirs are the tests of training.
TRAINS = ("train(load_config", "best.pt", "checkpoint.pt")


class Parsed(BaseException):
    """The arguments were understood; raised before anything is done with them."""


@pytest.fixture
def parse(monkeypatch, capsys):
    """``parse(command)``: its arguments, or None where there are none to check."""
    depth = 0

    def stopping(method):
        def parse_args(*args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                parsed = method(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                raise Parsed(parsed)
            return parsed

        return parse_args

    from evonorm_plugins import command

    # parse_args calls these in turn; the outermost has checked everything when it returns.
    for name in ("parse_args", "parse_intermixed_args"):
        method = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(method))
    monkeypatch.setattr(command, "parse_args", stopping(command.parse_args))

    def parse(words):
        run = runner(words)
        if run is None:
            return None
        try:
            run()
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as done:  # 0: after --help
            if done.code:
                pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err.strip()}")
        return None

    def runner(words):
        """What runs a command in this process up to its arguments; None where it is not ours."""
        program, arguments = words[0], words[1:]
        monkeypatch.setattr(sys, "argv", words)
        if program == "evonorm":
            return evonorm
        if program == "evonorm-eval":
            return importlib.import_module("evonorm_plugins.cli.eval").main
        if program.startswith("tools/"):
            monkeypatch.syspath_prepend(str((ROOT / program).parent))
            return lambda: runpy.run_path(str(ROOT / program), run_name="__main__")
        if program == "python" and arguments[:1] == ["-m"] and arguments[1] != "pytest":
            monkeypatch.setattr(sys, "argv", words[2:])
            return lambda: runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        if program == "torchrun":
            return runner(launched(arguments))
        return None

    return parse


def launched(arguments):
    """The command that torchrun starts in each process."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    options, _ = argparse.ArgumentParser.parse_known_args(parser, arguments)
    script = [options.training_script, *options.training_script_args]
    return script if options.no_python or not options.module else ["python", "-m", *script]


def check_files(words):
    """Files of the repository that a command names are there; its script can be executed."""
    program = words[0]
    if program.startswith("tools/"):
        assert (ROOT / program).is_file(), f"there is no {program}"
        assert os.access(ROOT / program, os.X_OK), f"{program} cannot be executed"
    for name in words:
        if re.match(r"(biggan/)?configs/|detectron_configs/|tests/", name):
            assert (ROOT / name).exists(), f"there is no {name}"


def check_config(words, parsed):
    """The config that a command names is there, and takes the options given with it."""
    overrides = [text for text in getattr(parsed, "overrides", None) or () if text[-3:] != "..."]
    given = getattr(parsed, "config", None) or []
    names = given if isinstance(given, list) else [str(given)]
    if not names:
        assert not overrides, f"{words} has no config to change"
        return
    kind = "classification"
    if "gan" in words or "biggan.train" in words:
        kind = "gan"
    elif words[0].startswith("tools/experiments/search_"):
        kind = "search"
    elif "rerank" not in words:
        kind = next((part for part in words if part in ("search", "sweep")), kind)
    home = {
        "gan": "biggan.config",
        "search": "evonorm_plugins.search.config",
        "sweep": "evonorm_plugins.classification.sweep.config",
    }.get(kind, "evonorm_plugins.classification.config")
    if kind == "search" and ("try" in words or words[0].startswith("tools/experiments/")):
        overrides = ["candidates=1", *overrides]  # as these commands do
    module = importlib.import_module(home)
    load = module.load_sweep if kind == "sweep" else module.load_config
    for name in names:
        load(find_config(name, kind), overrides)


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_run(page, tmp_path, parse):
    missing = importlib.util.find_spec("detectron2") is None
    for words in commands(page, tmp_path):
        check_files(words)
        if missing and words[0] in ("tools/train_net.py", "tools/count_flops.py"):
            continue
        parsed = parse(words)
        if parsed is not None:
            check_config(words, parsed)
        elif words[0] == "make":
            targets = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), words
        elif words[:2] == ["pip", "install"]:
            check_extras(words[2])


def check_extras(requirement):
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", requirement)
    files = [(ROOT / name).read_text() for name in ("setup.py", "pyproject.toml")]
    for extra in ((extras and extras[1]) or "").split(","):
        known = any(re.search(rf'^\s*"?{extra}"?\s*[:=]', text, re.MULTILINE) for text in files)
        assert known or not extra, f"there is no extra {extra!r}"


def test_blocks_are_commands_or_known_output():
    after_a_list = re.compile(r"^- .*\n(?:  .*\n)*\n    (?! )(.*)", re.MULTILINE)
    for page in PAGES:
        # Markdown takes such a block for a paragraph of the list.
        assert not after_a_list.search((ROOT / page).read_text()), page
        others = set(indented_blocks(page)) - set(shell_blocks(page))
        assert {block.split()[0] for block in others} <= OUTPUT, page


@pytest.mark.parametrize(("page", "line", "source"), PYTHON, ids=[f"{p}:{n}" for p, n, _ in PYTHON])
def test_python_blocks(page, line, source, tmp_path, monkeypatch):
    """They compile, what they import is there, and those that need nothing else run."""
    if "detectron2" in source:
        pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(source, f"{page}:{line}")
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    given = {a.asname or a.name.partition(".")[0] for n in imports for a in n.names}
    given |= {n.id for n in names if isinstance(n.ctx, ast.Store)} | set(dir(builtins))
    given |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    given |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    complete = all(n.id in given for n in names) and not any(text in source for text in TRAINS)
    body = ast.Module(tree.body if complete else imports, type_ignores=[])
    exec(compile(body, f"{page}:{line}", "exec"), {})


def test_the_report_of_convert_is_as_shown(capsys):
    pytest.importorskip("torchvision")
    shown = next(b for b in indented_blocks("docs/convert.md") if b.startswith("norms with an"))
    assert evonorm(["convert", "resnet50", "EvoNormS0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line in shown.splitlines():
        assert any(row.startswith(line.removesuffix("...").rstrip()) for row in printed), line


def test_the_report_of_fuse_is_as_shown():
    timm = pytest.importorskip("timm")
    from evonorm_plugins.integrations.timm import fuse

    shown = next(b for b in indented_blocks("docs/timm.md") if b.startswith("layers fused"))
    printed = str(fuse(timm.create_model("resnetv2_50d_evos")).report).splitlines()
    assert [line for line in shown.splitlines() if line.strip() != "..."] == [
        *printed[:3],
        printed[-1],
    ]


SMALL_DETECTOR = "--model maskrcnn_resnet18_fpn_small --batch 1 --iterations 1 --workers 0"
# A page, how one of its commands begins, and what makes it short. Later ones need earlier ones.
QUICK = [
    ("docs/index.md", "evonorm config", ""),
    ("README.md", "evonorm eval ap", ""),
    ("docs/index.md", "evonorm gan train --config digits32", "steps=1 batch_size=8"),
    ("docs/index.md", "evonorm gan sample", ""),
    ("README.md", "evonorm classify", "steps=1 batch_size=4 max_val_images=10"),
    ("docs/index.md", "evonorm search layer", ""),
    ("docs/index.md", "evonorm search try", "steps=1 quality_steps=1 batch_size=8 holdout=20"),
    ("docs/index.md", "evonorm detect train", SMALL_DETECTOR),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the files that the commands of QUICK read, made up."""
    pytest.importorskip("timm")  # an extra's: with it come all that the commands need
    folder = tmp_path_factory.mktemp("made") / "files"
    make = runpy.run_path(str(ROOT / "tools/make_shapes_dataset.py"))["make_shapes_dataset"]
    make(folder, train=6, val=3, size=48)
    truth, found = random_case(0, images=3)
    (folder / "instances_val.json").write_text(json.dumps(truth))
    (folder / "detections.json").write_text(json.dumps(found))
    random = np.random.default_rng(0)
    for name in ("cifar10-train.zip", "cifar10-test.zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for k in range(80):
                with archive.open(f"{k % 10}/{k}.png", "w") as file:
                    pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                    Image.fromarray(pixels).save(file, "PNG")
    return folder


@pytest.mark.parametrize(("page", "start", "shorter"), QUICK, ids=[q[1] for q in QUICK])
def test_quick_commands_run(page, start, shorter, made, tmp_path, monkeypatch, capsys):
    found = [words for words in commands(page, tmp_path) if " ".join(words).startswith(start)]
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    assert evonorm([*found[0][1:], *shorter.split()]) == 0, capsys.readouterr().err
