"""The source that a path names."""

import glob
import os
import zipfile
from pathlib import Path

from evonorm_plugins.data.arrays import ArraySource, check_float_range
from evonorm_plugins.data.cifar10 import Cifar10Source
from evonorm_plugins.data.digits import DigitsSource
from evonorm_plugins.data.folder import FolderSource, class_folders
from evonorm_plugins.data.hdf5 import Hdf5Source
from evonorm_plugins.data.tar import TarSource
from evonorm_plugins.data.zip import ZipSource
from evonorm_plugins.errors import DataError

_KINDS = (
    "a folder of class folders, a .zip of them, a .hdf5, .tar shards, torchvision's folder of "
    "CIFAR-10, or digits"
)


def open_source(path, *, key="data", train=True, resolution=None):
    """Images with classes.

    Args:
        path: a folder of class folders or of tar shards, one .zip or .hdf5, a pattern of .tar
            shards, torchvision's folder of CIFAR-10, or "digits".
        key: the option that the path is of, for messages.
        train: of CIFAR-10, whether the training images are meant or those of the test.
        resolution: digits are enlarged to it.

    Raises:
        DataError: nothing is there, or it is not of a known kind, or a class is empty.
    """
    if not path:
        raise DataError(f"no images are given: {key}=PATH, {_KINDS}")
    if path == "digits":
        return DigitsSource(resolution)
    if os.path.isdir(path):
        if Cifar10Source.is_at(path):
            return Cifar10Source(path, train=train)
        shards = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
        return TarSource(shards) if shards and not class_folders(path) else FolderSource(path)
    found = [path] if os.path.exists(path) else sorted(glob.glob(path))
    if not found:
        raise DataError(f"{key}={path}: there is no such folder or file{_near(path)}")
    suffix = Path(found[0]).suffix.lower()
    if suffix == ".tar":
        return TarSource(found)
    if suffix == ".zip" and len(found) == 1:
        return ZipSource(found[0])
    if suffix in (".h5", ".hdf5") and len(found) == 1:
        return Hdf5Source(found[0])
    raise DataError(f"{key}={path}: neither a folder nor a .zip, a .hdf5 or .tar shards")


def open_images(path, float_range=None):
    """Images without classes: a folder or zip file, subfolders included, or an npz or npy file.

    Args:
        float_range: see :class:`~evonorm_plugins.data.arrays.ArraySource`.

    Raises:
        DataError: it is none of these, holds no images, or the range is none.
    """
    given, path = path, Path(path)
    if float_range:
        check_float_range(*float_range)
    if path.is_dir():
        return FolderSource(path, with_classes=False)
    if not path.exists():
        raise DataError(f"there is no file or folder {given}")  # a Path loses a slash of an address
    if path.suffix.lower() in (".npy", ".npz"):
        return ArraySource(path, float_range)
    if zipfile.is_zipfile(path):
        return ZipSource(path, with_classes=False)
    raise DataError(
        f"{path} ({path.stat().st_size} bytes) is neither a folder of images nor a zip, npz or npy "
        "file; is it cut off?"
    )


def _near(path):
    found = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(path) or "."), "*.zip")))
    return f"; there is {', '.join(found[:5])}" if found else ""
