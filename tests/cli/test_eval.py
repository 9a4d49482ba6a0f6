"""The command itself: entry points, help, what it imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evonorm_plugins.cli.eval import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)])
def test_help_has_examples_and_exit_status(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "exit status: 0 done, 1 failed or stopped, 2 bad input" in out


@pytest.mark.parametrize("arguments", [[], ["fid"], ["gan", "--n", "0"], ["ap", "--iou", "oks"]])
def test_misspelt_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_tool_is_the_same_command(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/evaluate.py", "table", tmp_path / "x.json"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "was not written by evonorm-eval" in done.stderr


def test_what_importing_needs():
    code = (
        "import sys, json, evonorm_plugins, evonorm_plugins.cli.eval\n"
        "heavy = ['detectron2', 'triton', 'biggan', 'torchvision', 'pycocotools', 'torch_fidelity',"
        "'pytorch_fid', 'hotcoco', 'PIL']\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_full_disk_is_no_bad_input(monkeypatch, capsys):
    def fail(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evonorm_plugins.cli.eval.table.run", fail)
    assert main(["table", "x.json"]) == 1
    assert capsys.readouterr().err == "error: no space left to write\n"
