"""What must work after a plain install; run by tools/dist.py in the environment it makes.

Exits with a traceback at the first thing that does not.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path


def main():
    for compiler in ("cc", "gcc", "clang", "cl"):
        assert not shutil.which(compiler), f"{compiler} is on the PATH"
    check_configs()
    check_commands()
    check_training()


def check_configs():
    """Every config is found by name, and the files it starts from are there."""
    from evonorm_plugins.configs import KINDS, find_config, list_configs

    for kind in KINDS:
        names = list_configs(kind)
        assert names, f"no {kind} config"
        for name in names:
            path = find_config(name, kind)
            assert Path(sys.prefix).resolve() in path.parents, f"{path} is not the installed one"
            while base := re.search(r'^_BASE_: *"?([^"\s]+)', path.read_text(), re.MULTILINE):
                path = path.parent / base[1]
                assert path.is_file(), f"{name} starts from {path}"
        print(f"{kind}: {len(names)} configs")
    assert "torch" not in sys.modules, "finding configs needs torch"


def check_commands():
    for command in (["evonorm", "--version"], ["evonorm", "config"]):
        subprocess.run(command, check=True)
    for command in ("evonorm", "evonorm-eval"):
        shown = subprocess.check_output([command, "--help"], text=True)
        assert f"usage: {command}" in shown, shown
        print(f"{command} --help: {len(shown.splitlines())} lines")


def check_training():
    """The fused kernels run, and a few steps with them make a loss fall."""
    import torch
    from torch import nn

    import evonorm_plugins
    from evonorm_plugins import EvoNormB0, EvoNormS0
    from evonorm_plugins import functional as F

    assert Path(sys.prefix).resolve() in Path(evonorm_plugins.__file__).parents
    shown = evonorm_plugins.show_config()
    print(shown)
    assert shown.startswith("cpu: cpu kernels"), "the fused kernels do not run"
    assert "OpenMP" in shown, "built without OpenMP"
    torch.manual_seed(0)
    x = torch.randn(8, 16, 8, 8)
    one, zero = torch.ones(16), torch.zeros(16)
    fused, plain = (F.evonorm_s0(x, one, zero, one, impl=impl) for impl in ("cpu", "torch"))
    torch.testing.assert_close(fused, plain)
    model = nn.Sequential(
        *(nn.Conv2d(16, 16, 3), EvoNormS0(16), nn.Conv2d(16, 16, 3), EvoNormB0(16)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss of a small model: {losses[0]:.3f}, after 20 steps {losses[-1]:.3f}")
    assert losses[-1] < 0.8 * losses[0]
    check_openmp()


def check_openmp():
    """There is one OpenMP library: a second has threads of its own, which wait for the first's."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = re.findall(r"/\S*/lib(?:gomp|iomp|omp)\S*", maps.read_text())
        print("OpenMP:", *sorted(set(mapped)))
        assert len(set(mapped)) == 1


if __name__ == "__main__":
    main()
