"""What the Makefile names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_files_of_make_check():
    text = (ROOT / "Makefile").read_text()
    listed = re.search(r"^CHECK_TESTS \?= (.*?\)\))$", text, re.MULTILINE | re.DOTALL)[1]
    names = re.findall(r"\b\w+/[\w/]*test_\w+", listed)
    assert len(names) > 30
    missing = [name for name in names if not (ROOT / f"tests/{name}.py").is_file()]
    assert not missing
