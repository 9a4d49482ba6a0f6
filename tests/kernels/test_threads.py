"""The CPU kernels on several threads and in several processes."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from evonorm_plugins import get_norm_act, kernels

pytestmark = pytest.mark.skipif(
    kernels.cpu.missing() is not None, reason=f"no CPU kernels: {kernels.cpu.missing()}"
)


@pytest.fixture
def threads():
    """``threads(n)``: use n threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 8, 9, 7), torch.float32),
        ((2, 24, 33, 17), torch.float32),
        ((3, 132, 4, 4), torch.float32),
        # Fewer parts than three threads: what two hold between their steps is computed again.
        ((1, 8, 64, 64), torch.bfloat16),
    ],
    ids=str,
)
def test_any_number_of_threads(kind, shape, dtype, layout, threads, draw, differentiate):
    """The same bits, also where there are fewer groups or channels than threads."""
    arguments, dy = draw(shape, dtype=dtype)
    arguments["x"] = arguments["x"].to(memory_format=layout)
    results = []
    for number in (1, 2, 3, 5, 2):
        threads(number)
        results.append(differentiate(kind, arguments, dy, "cpu", groups=2))
    for other in results[1:]:
        assert all(torch.equal(other[k], t) for k, t in results[0].items())


class Normalized(torch.utils.data.Dataset):
    """Applies a layer in the process of the loader."""

    layer = get_norm_act("EvoNormS0", 8).requires_grad_(False)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.layer(torch.full((1, 8, 16, 16), float(index)))


def test_in_workers_of_a_data_loader(threads):
    """Processes forked after the kernels have run on several threads."""
    threads(2)
    data = Normalized()
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(
        data, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    for actual, y in zip(loader, expected, strict=True):
        assert torch.equal(actual, y)


def test_one_openmp_runtime():
    """A second one would have threads of its own, which wait for torch's in a loop."""
    script = (
        "import torch, evonorm_plugins; torch.randn(512, 512) @ torch.randn(512, 512);"
        "evonorm_plugins.EvoNormS0(32)(torch.randn(4, 32, 64, 64));"
        "names = {l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split()[-1]};"
        "print(sorted(n for n in names if 'libgomp' in n or 'libiomp' in n or 'libomp' in n))"
    )
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("no /proc here")
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    output = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert len(eval(output)) == 1, output
