"""Code blocks of the documentation: what a reader copies."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
# Programs that a command begins with. Every call of them is recorded instead of made.
PROGRAMS = ("evonorm", "evonorm-eval", "git", "make", "pip", "python", "torchrun")
COMMAND = re.compile(r"(for |\w+=|tools/|({}) )".format("|".join(PROGRAMS)))
# Blocks of what a command prints, and a formula, by their first word.
OUTPUT = {"backbone", "layers", "norms", "step", "x"}
RECORD = """#!/bin/bash
printf '%s\\0' {name} "$@" >> "$RECORDED"
printf '\\n\\0' >> "$RECORDED"
"""


def python_blocks(page):
    """``[(line number, source)]`` of the fenced blocks of Python."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start()].count("\n") + 2, m[1]) for m in found]


def indented_blocks(page):
    """Texts of the blocks indented by four spaces, without those; a blank line ends a block."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?<=\n\n)((?:    .*\n)+)", text)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]


def shell_blocks(page):
    """Texts of the blocks of commands."""
    return [block for block in indented_blocks(page) if COMMAND.match(block)]


def _scripts():
    return [path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").rglob("*.py")]


def commands(page, folder):
    """Every command of a page as bash reads it, ``[program, argument, ...]``: variables, quotes,
    loops and continued lines included. None of them is run.

    Args:
        page: of PAGES.
        folder: an empty one to work in.
    """
    programs = folder / "bin"
    for name in (*PROGRAMS, *_scripts()):
        # A program of the path, or a file of the repository, under which bash finds it.
        file = folder / name if "/" in name else programs / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(RECORD.format(name=name))
        file.chmod(0o755)
    (folder / "page.sh").write_text("set -eu\n" + "\n".join(shell_blocks(page)))
    recorded = folder / "recorded"
    recorded.touch()
    done = subprocess.run(
        [shutil.which("bash"), "page.sh"],
        cwd=folder,
        env={"PATH": f"{programs}:/bin:/usr/bin", "RECORDED": str(recorded), "COCO": "coco"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page}: {done.stderr}"
    texts = recorded.read_text().split("\n\0")
    return [text.rstrip("\0").split("\0") for text in texts if text]
