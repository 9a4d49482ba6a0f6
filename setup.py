import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
# Read, not imported: the package needs torch, which a build environment need not have.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "evonorm_plugins/__init__.py").read_text(), re.MULTILINE
).group(1)

# Detectron2 is on no package index and needs torch before it can be built: it is never a
# requirement here, `make` gets it with tools/install_detectron2.py.
EXTRAS = {
    "detection": [
        "matplotlib",
        "opencv-python-headless",  # imported by Detectron2's visualizer, which does not require it
        "pycocotools>=2.0.2",
        "pyyaml",
        "setuptools<81",  # Detectron2's model zoo imports pkg_resources
        "torchvision",
    ],
    "metrics": [
        "faster-coco-eval>=1.8",  # before, it counted a match of annotation id 0
        "numpy",
        "pillow",
        "pycocotools>=2.0.2",
        "pytorch-fid",
        "torch-fidelity",
        "torchvision",
        "tqdm",
    ],
    "gan": [
        "h5py",  # data in HDF5
        "numpy",
        "pillow",
        "pytorch-fid",
        "pyyaml",
        "scikit-learn",  # the digits of the demo
        "tensorboard",
        "torch-fidelity",
        "torchvision",
        "tqdm",
    ],
    "classification": [
        "matplotlib",
        "numpy",
        "pillow",
        "pyyaml",
        "ray[tune]",  # sweeps and the layer search
        "tensorboard",
        "timm",
        "torchvision",
        "tqdm",
    ],
    "test": [
        *("import-linter", "numpy", "onnx", "onnxruntime", "onnxscript", "pytest", "pytest-xdist"),
        *("ruff", "timm"),
    ],
}
EXTRAS["dev"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

LOOPS = ("loops_baseline", "loops_avx2", "loops_avx512")  # one for each instruction set
# Plain C, loaded with ctypes: needs neither torch's headers nor Python's. Optional: where it cannot
# be compiled, the layers run in plain torch and say so.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has none
CSRC = "evonorm_plugins/kernels/csrc"
KERNELS = Extension(
    "evonorm_plugins.kernels._evonorm",
    sources=[f"{CSRC}/{stem}.c" for stem in ("evonorm", *LOOPS)],
    depends=[f"{CSRC}/evonorm.h", f"{CSRC}/loops.h", f"{CSRC}/vectors.h"],
    # Not -ffast-math: NaN must come out where NaN went in.
    extra_compile_args=[
        *("-std=c99", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
        *("-fopenmp-simd", *OPENMP),
    ],
    extra_link_args=OPENMP,
    optional=True,
)

setup(
    name="evonorm-plugins",
    version=VERSION,
    description="EvoNorm layers for PyTorch, for Detectron2 and for BigGAN",
    packages=find_packages(include=["evonorm_plugins*", "biggan*"]),
    package_data={"biggan": ["configs/*.yaml"]},
    ext_modules=[KERNELS],
    python_requires=">=3.10",
    install_requires=["torch>=2.6"],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "evonorm = evonorm_plugins.cli:main",
            "evonorm-eval = evonorm_plugins.cli.eval:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    ],
)
