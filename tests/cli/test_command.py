"""The command ``evonorm``: what it lists, what it costs to ask for help, how it refuses."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evonorm_plugins import __version__, cli

ROOT = Path(__file__).resolve().parents[2]


def commands():
    """All commands, as words: ``["eval", "ap"]``."""
    found = []
    for name in cli.COMMANDS:
        module = importlib.import_module(f"evonorm_plugins.cli.{name}")
        below = getattr(module, "COMMANDS", None)
        found += [[name, sub] for sub in below] if below else [[name]]
    return found


def answer(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return end.value.code, *capsys.readouterr()


def test_list(capsys):
    status, out, _ = answer(capsys, "--help")
    assert status == 0
    shown = " ".join(out.split())
    for name, summary in cli.COMMANDS.items():
        assert f" {name} {' '.join(summary.split())} " in shown, name
    assert answer(capsys, "--version")[1] == f"evonorm {__version__}\n"


@pytest.mark.parametrize("words", [[], ["eval"], ["gan"], *commands()], ids=" ".join)
def test_help(capsys, words):
    status, out, _ = answer(capsys, *words, "--help")
    assert status == 0
    assert out.startswith(f"usage: {' '.join(['evonorm', *words])} ")
    assert "examples:\n" in out
    assert out.endswith("exit status: 0 done, 1 failed or stopped, 2 bad input\n")


@pytest.mark.parametrize("words", [[], ["eval"], ["gan"], *commands()], ids=" ".join)
def test_unknown_option_or_command(capsys, words):
    status, out, err = answer(capsys, *words, "--frobnicate")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith(f"see {' '.join(['evonorm', *words])} --help\n")


def test_help_imports_nothing_heavy():
    code = (
        "import contextlib, io, json, sys\n"
        "from evonorm_plugins.cli import main\n"
        f"for words in {[[], *commands()]!r}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*words, '--help'])\n"
        "heavy = ['torch', 'numpy', 'yaml', 'PIL', 'ray', 'detectron2', 'torchvision']\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "evonorm_plugins.cli", "config", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["versions"]["evonorm_plugins"] == __version__
    assert found["config"][-1] == "float64 and other devices: torch"
