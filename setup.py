"""What pyproject.toml cannot say: the C library, the wheel's tag, the configs' place."""

import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

LOOPS = ("loops_baseline", "loops_avx2", "loops_avx512")  # one for each instruction set
CSRC = "evonorm_plugins/kernels/csrc"
OPENMP = "-fopenmp"
# Plain C, loaded with ctypes: needs neither torch's headers nor Python's. Optional: where it cannot
# be compiled, the layers run in plain torch and say so.
KERNELS = Extension(
    "evonorm_plugins.kernels._evonorm",
    sources=[f"{CSRC}/{stem}.c" for stem in ("driver", "sample", "batch", "affine", *LOOPS)],
    depends=sorted(map(str, Path(CSRC).glob("*.h"))),
    # Not -ffast-math: NaN must come out where NaN went in.
    extra_compile_args=[
        *("-std=c99", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
        *("-fopenmp-simd", OPENMP),
    ],
    extra_link_args=[OPENMP],
    optional=True,
)
# Folders of the checkout that a wheel holds below evonorm_plugins/_configs; evonorm_plugins.configs
# finds both.
CONFIGS = {f"evonorm_plugins._configs.{name}": name for name in ("configs", "detectron_configs")}


class BuildLibrary(build_ext):
    """The library under a name without Python's version, which it does not depend on."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext):
        # Not PyInit_..., which a linker for Windows would look for.
        return []

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CompileError, LinkError) as error:  # Apple's compiler has no OpenMP
            warnings.warn(f"{error}; trying without OpenMP, for one thread", stacklevel=1)
            ext.extra_compile_args.remove(OPENMP)
            ext.extra_link_args.remove(OPENMP)
            super().build_extension(ext)


class PlatformWheel(bdist_wheel):
    """A wheel of this platform for every Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages(include=["evonorm_plugins*", "biggan*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={
        **{package: ["**/*.yaml"] for package in CONFIGS},
        "evonorm_plugins": ["py.typed"],
        "biggan": ["configs/*.yaml", "py.typed"],
    },
    ext_modules=[KERNELS],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
