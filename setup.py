import re
from pathlib import Path

from setuptools import find_packages, setup

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
    "metrics": ["pytorch-fid", "torch-fidelity", "torchvision"],
    "gan": ["pytorch-fid", "pyyaml", "torch-fidelity", "torchvision"],
    "test": ["numpy", "onnx", "onnxruntime", "onnxscript", "pytest", "ruff", "timm"],
}
EXTRAS["dev"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="evonorm-plugins",
    version=VERSION,
    description="EvoNorm layers for PyTorch, for Detectron2 and for BigGAN",
    packages=find_packages(include=["evonorm_plugins*", "biggan*"]),
    python_requires=">=3.10",
    install_requires=["torch>=2.6"],
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    ],
)
