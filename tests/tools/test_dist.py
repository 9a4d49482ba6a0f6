"""tools/dist.py and setup.py: what is built, with which compilers, and that it works elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import evonorm_plugins

ROOT = Path(__file__).parents[2]
OURS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "*.so", "build", "dist", "output")
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('out'))"
TOP = (".cff", ".md", ".py", ".toml", ".yml", "LICENSE", "Makefile")
LIBRARY = "evonorm_plugins/kernels/_evonorm.abi3.so"

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")


def run(command, folder, **environment):
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(what, source, **environment):
    """The file that the build back end makes of a source folder."""
    Path(source, "out").mkdir(exist_ok=True)
    output = run([sys.executable, "-c", BUILD, what], source, **environment)
    return Path(source, "out", output.splitlines()[-1])


def compiler(folder, script):
    path = Path(folder, "fake-cc")
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def source(tmp_path):
    return shutil.copytree(ROOT, tmp_path / "source", ignore=OURS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution of this checkout, and the wheel made of what it holds."""
    folder = tmp_path_factory.mktemp("built")
    checkout = shutil.copytree(ROOT, folder / "checkout", ignore=OURS)
    sdist = build("build_sdist", checkout)
    shutil.unpack_archive(sdist, folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    # Not optimized, to save ten seconds: the library of the checkout is.
    return unpacked, build("build_wheel", unpacked, CC=compiler(folder, 'exec cc "$@" -O0'))


def files(root):
    """What a release is made of, of a folder that holds a checkout."""
    folders = ("biggan", "configs", "detectron_configs", "docs", "evonorm_plugins", "requirements")
    paths = [p for folder in (*folders, "tests", "tools") for p in (root / folder).rglob("*")]
    paths += [p for p in root.glob("*") if p.suffix in TOP or p.name in TOP]
    return {str(p.relative_to(root)) for p in paths if p.is_file()}


def test_source_distribution_holds_what_the_repository_does(built):
    unpacked, _ = built
    assert {"LICENSE", "pyproject.toml", "tests/conftest.py"} <= files(unpacked)
    assert files(unpacked) - {"PKG-INFO"} == files(unpacked.parent / "checkout")


def test_wheel_serves_every_python_of_its_platform(built):
    _, wheel = built
    version = evonorm_plugins.__version__
    assert re.fullmatch(rf"evonorm_plugins-{re.escape(version)}-cp310-abi3-\w+\.whl", wheel.name)
    assert not wheel.stem.endswith("any")
    with zipfile.ZipFile(wheel) as content:
        names = [n for n in content.namelist() if ".dist-info/" not in n]
        others = {n for n in names if not n.endswith((".py", ".yaml", "/py.typed"))}
        assert others == {LIBRARY}
        metadata = content.read(f"evonorm_plugins-{version}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(metadata)
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_wheel_works_in_a_fresh_environment(built, tmp_path):
    command = [sys.executable, str(ROOT / "tools/dist.py"), "--share", "--check", str(built[1])]
    assert "works" in run(command, tmp_path)


USE = """
import torch, evonorm_plugins
print(evonorm_plugins.EvoNormS0(4)(torch.ones(1, 4, 2, 2)).shape)
print(evonorm_plugins.show_config())
"""


def test_a_compiler_that_refuses_leaves_plain_torch(source):
    cc = compiler(source, 'echo "cl: unknown option $1" >&2; exit 2')
    wheel = build("build_wheel", source, CC=cc)
    shutil.unpack_archive(wheel, source / "installed", "zip")
    assert not (source / "installed" / LIBRARY).exists()
    shown = run([sys.executable, "-W", "ignore", "-c", USE], source / "installed")
    assert "torch.Size([1, 4, 2, 2])\ncpu: torch (cpu kernels cannot run: the C ext" in shown


def test_a_compiler_without_openmp_gives_kernels_of_one_thread(source):
    refuse = "for a; do [ $a != -fopenmp ] || { echo no OpenMP >&2; exit 1; }; done"
    cc = compiler(source, f'{refuse}\nexec cc "$@" -O0')
    run([sys.executable, "setup.py", "build_ext", "--inplace"], source, CC=cc)
    shown = run([sys.executable, "-c", USE], source)
    assert "cpu: cpu kernels (" in shown
    assert "one thread: built without OpenMP" in shown


def test_changelog_and_citation_are_of_this_version():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:2] == ["Unreleased", evonorm_plugins.__version__]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2004.02967"
