"""Install Detectron2 into the virtual environment that runs this script, if it can be had.

In this order: it is there already; a wheel in $DETECTRON2_WHEELS; upstream's repository at the
commit of requirements/detectron2.txt. Where none works the exit code is still 0, since the rest of
the project runs without Detectron2: the reason and the command that installs it go to stderr and to
<environment>/detectron2-missing.txt, which the tests quote when they skip.
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = Path(sys.prefix)
MISSING = ENVIRONMENT / "detectron2-missing.txt"
# What failed to install is not tried again at every run; the Makefile removes this file when it
# rebuilds the environment and for `make detectron2`.
FAILED = ENVIRONMENT / "detectron2-failed.txt"
WHEELS = Path(os.environ.get("DETECTRON2_WHEELS") or "~/.cache/evonorm/wheels").expanduser()
BUILD_SECONDS = int(os.environ.get("DETECTRON2_BUILD_SECONDS") or 1200)
PROBE_SECONDS = 20
REQUIREMENT = (ROOT / "requirements/detectron2.txt").read_text().splitlines()[-1]
PIP = [sys.executable, "-m", "pip"]
INSTALL = [*PIP, "install", "-c", str(ROOT / "requirements/constraints.txt")]
FROM_UPSTREAM = [*INSTALL, "--no-build-isolation", REQUIREMENT]


def main():
    if (problem := import_problem()) is None:
        MISSING.unlink(missing_ok=True)
        return
    reasons = [] if any(WHEELS.glob("detectron2-*.whl")) else [f"no wheel in {WHEELS}"]
    for source, key, attempt in sources():
        failed = FAILED.read_text().splitlines() if FAILED.exists() else []
        if key in failed:
            reasons.append(f"{source} failed before (`make detectron2` tries again)")
            continue
        print(f"Detectron2: trying {source}", file=sys.stderr)
        problem, permanent = attempt()
        if problem is None:
            MISSING.unlink(missing_ok=True)
            print(f"Detectron2: installed from {source}", file=sys.stderr)
            return
        reasons.append(f"{source}: {problem}")
        if permanent:
            FAILED.write_text("\n".join([*failed, key]) + "\n")
    message = f"Detectron2 is not installed ({'; '.join(reasons)}). To install it: "
    message += shlex.join(FROM_UPSTREAM)
    MISSING.write_text(message + "\n")
    print(message, file=sys.stderr)


def sources():
    """(shown name, what identifies it, attempt) of every place to try, in order."""
    for wheel in sorted(WHEELS.glob("detectron2-*.whl")):
        stat = wheel.stat()
        key = f"{wheel} {stat.st_size} {stat.st_mtime_ns}"
        yield str(wheel), key, lambda wheel=wheel: install([*INSTALL, str(wheel)], 300)
    yield REQUIREMENT.split("git+")[-1], REQUIREMENT, install_from_upstream


def install_from_upstream():
    # Asked first and briefly: a network that swallows packets would hold pip for minutes.
    url = REQUIREMENT.split("git+")[-1].rpartition("@")[0]
    if problem := run(["git", "ls-remote", "--quiet", url, "HEAD"], PROBE_SECONDS):
        return f"not reachable, {problem}", False
    return install(FROM_UPSTREAM, BUILD_SECONDS)


def install(command, seconds):
    """(problem or None, whether it would be the same next time)."""
    if problem := run([*command[:4], "--quiet", *command[4:]], seconds):
        return problem, True
    # A wheel of another torch installs well and fails at import, which is worse than none.
    if problem := import_problem():
        run([*PIP, "uninstall", "--quiet", "--yes", "detectron2"], 60)
    return problem, problem is not None


def import_problem():
    """Why Detectron2 or its compiled part cannot be imported in a fresh interpreter, or None."""
    return run([sys.executable, "-c", "import detectron2, torch, detectron2._C"], 120)


def run(command, seconds):
    """None, or the last line of what a failing command said."""
    # Git must fail where it would ask for a password: nobody may be there to answer.
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true"}
    try:
        process = subprocess.Popen(
            command,
            cwd=ENVIRONMENT,  # not the checkout, whose folders could pass for packages
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that compilers and git's helpers end with the command
        )
    except OSError as error:
        return str(error)
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return f"no end after {seconds} s"
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or line.startswith("fatal")]
    return (errors or lines or [f"exit code {process.returncode}"])[-1]


if __name__ == "__main__":
    main()
