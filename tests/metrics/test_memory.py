"""Memory does not grow with the number of images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import re, sys
from evonorm_plugins.cli.eval import main
assert main(sys.argv[1:]) == 0
# Not ru_maxrss: that is never below what the parent process had.
status = open("/proc/self/status").read()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024, file=sys.stderr)
"""


def peak_mib(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "gan", "--quiet", "--workers", "0", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stderr.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_of_few_and_of_many_images(tmp_path, quick_extractor):
    peaks = {}
    for n in (200, 4000):
        images = np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8)
        np.savez(tmp_path / "x.npz", images)
        peaks[n] = peak_mib("--feature-extractor", quick_extractor, "--fake", tmp_path / "x.npz")
    # The images themselves are 47 MiB.
    assert peaks[4000] - peaks[200] < 12, peaks
