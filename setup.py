"""What pyproject.toml cannot say: the C library, the wheel's tag, the configs' place."""

import sysconfig
import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

LOOPS = ("loops_baseline", "loops_avx2", "loops_avx512")  # one for each instruction set
STEMS = ("module", "arguments", "tensors", "sizes", "driver", "instructions")
FORMULAS = ("sample", "group", "batch", "affine", "average")
CSRC = "evonorm_plugins/kernels/csrc"
OPENMP = "-fopenmp"
# Needs no header of torch, and of Python the stable ABI alone, so that one library serves every
# version (one without the global lock has none, and a library of its own). Optional: where it
# cannot be compiled, the layers run in plain torch and say so.
OLDEST = None if sysconfig.get_config_var("Py_GIL_DISABLED") else "cp310"
KERNELS = Extension(
    "evonorm_plugins.kernels._evonorm",
    sources=[f"{CSRC}/{stem}.c" for stem in (*STEMS, *FORMULAS, *LOOPS)],
    depends=sorted(map(str, Path(CSRC).glob("*.h"))),
    # Not -ffast-math: NaN must come out where NaN went in.
    extra_compile_args=[
        *("-std=c99", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
        *("-fopenmp-simd", OPENMP),
    ],
    extra_link_args=[OPENMP],
    define_macros=[("Py_LIMITED_API", "0x030A0000")] if OLDEST else [],
    py_limited_api=bool(OLDEST),
    optional=True,
)
# Folders of the checkout that a wheel holds below evonorm_plugins/_configs; evonorm_plugins.configs
# finds both.
CONFIGS = {f"evonorm_plugins._configs.{name}": name for name in ("configs", "detectron_configs")}


class BuildLibrary(build_ext):
    """Without OpenMP where the compiler has none."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CompileError, LinkError) as error:  # Apple's compiler has no OpenMP
            warnings.warn(f"{error}; trying without OpenMP, for one thread", stacklevel=1)
            ext.extra_compile_args.remove(OPENMP)
            ext.extra_link_args.remove(OPENMP)
            super().build_extension(ext)


setup(
    packages=[*find_packages(include=["evonorm_plugins*", "biggan*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={
        **{package: ["**/*.yaml"] for package in CONFIGS},
        "evonorm_plugins": ["py.typed"],
        "biggan": ["configs/*.yaml", "py.typed"],
    },
    ext_modules=[KERNELS],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": OLDEST}} if OLDEST else {},
)
