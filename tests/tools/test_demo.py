"""tools/demo.py: the README's first command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.detectron2
def test_demo(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools/demo.py"),
        "--iterations",
        "20",
        "--only",
        "detection",
    ]
    out = subprocess.run(
        [*command, "--output-dir", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr
    assert "iteration     20/20" in out.stdout
    assert "bbox " in out.stdout
    assert "segm " in out.stdout
    assert (tmp_path / "run/predictions.png").read_bytes()[:4] == b"\x89PNG"


def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, str(ROOT / "tools/demo.py"), "--only", "biggan", "--gan-steps", "2"]
    out = subprocess.run(
        [*command, "--output-dir", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr
    assert "classified as asked for" in out.stdout
    assert (tmp_path / "digits/digits.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "digits/best.pt").exists()


def test_bad_options():
    command = [sys.executable, str(ROOT / "tools/demo.py"), "--iterations", "0"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.returncode == 2
    assert "--iterations 0 must be at least 1" in out.stderr
