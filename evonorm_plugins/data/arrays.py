"""Images in a NumPy array, read from the file piece by piece."""

import math
import zipfile
from pathlib import Path

import numpy as np

from evonorm_plugins.data.in_memory import check_fits
from evonorm_plugins.data.source import PerProcess, Source
from evonorm_plugins.errors import DataError

_LAYOUTS = "(N, H, W, 3), (N, 3, H, W), (N, H, W, 1), (N, 1, H, W) or (N, H, W)"


def check_float_range(low, high):
    """Raise :class:`DataError` unless these are two finite, different numbers."""
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise DataError(
            f"--float-range {low:g} {high:g}: give what is black and what is white, two different "
            "finite numbers"
        )


class ArraySource(Source):
    """Images of an npy file, or of the one array of images in an npz file.

    Args:
        path: the file; the array is uint8 of one of the shapes in the error's text.
        float_range: (low, high) of floating point images, which are quantised as saving them
            would: to the nearest of 256 levels. None refuses them.

    Raises:
        DataError: no such array, it is cut off, or the range is none.
    """

    sequential = True

    def __init__(self, path, float_range=None):
        self.path, self.float_range = Path(path), float_range
        if float_range:
            check_float_range(*float_range)
        self.member, size = None, self.path.stat().st_size
        if self.path.suffix.lower() == ".npz":
            self.member, size = _find_member(self.path)
        self.stream = PerProcess(_open, self.path, self.member)
        try:
            with _open(self.path, self.member) as stream:
                self.shape, fortran, self.dtype = _header(stream)
                self.offset = stream.tell()
            self._check(fortran)
            self.layout = _layout(self.shape, self.path)
            self.row = math.prod(self.shape[1:]) * self.dtype.itemsize
            self._check_length((size - self.offset) // self.row)
            check_fits(
                f"an image of {path}", (self.dtype.itemsize, *self.shape[1:]), "a smaller one"
            )
        except DataError:
            raise
        except Exception as error:  # a file of another kind can fail anywhere in these readers
            raise DataError(f"{path} is no array that can be read: {error}") from None
        self.labels = np.zeros(self.shape[0], np.int64)

    def _check(self, fortran):
        if fortran:
            raise DataError(f"{self.path} is in Fortran order; save np.ascontiguousarray(images)")
        if self.dtype == np.uint8:
            return
        if self.dtype.kind != "f":
            raise DataError(f"{self.path} holds {self.dtype} images; save them as uint8, 0 to 255")
        if not self.float_range:
            raise DataError(
                f"{self.path} holds {self.dtype} images; say what is black and white with "
                "--float-range 0 1 (or -1 1, 0 255), or save them as uint8"
            )

    def _check_length(self, there):
        if there < self.shape[0]:
            raise DataError(
                f"{self.path} is cut off: it should hold {self.shape[0]} images, {there} are there"
            )

    def read(self, i):
        try:
            stream = self.stream()
            stream.seek(self.offset + i * self.row)
            content = stream.read(self.row)
        except Exception as error:  # of zlib or a wrong checksum
            raise DataError(f"{self.name(i)} cannot be read: {error}") from None
        if len(content) < self.row:
            self._check_length(i)
        pixels = np.frombuffer(content, self.dtype).reshape(self.shape[1:])
        if self.dtype != np.uint8:
            pixels = _quantise(pixels, *self.float_range, self.name(i))
        if self.layout == "HW":
            pixels = pixels[..., None]
        elif self.layout == "CHW":
            pixels = pixels.transpose(1, 2, 0)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def describe(self):
        return {"float_range": list(self.float_range)} if self.dtype.kind == "f" else {}

    def name(self, i):
        return f"{self.path}: image {i}"

    def files(self):
        return [str(self.path)]


def _open(path, member):
    return open(path, "rb") if member is None else zipfile.ZipFile(path).open(member)


def _quantise(pixels, low, high, name):
    """As saving them would: rounded to 256 levels, what is outside cut off."""
    if not np.isfinite(pixels).all():
        raise DataError(f"{name} holds values that are not finite")
    levels = (pixels.astype(np.float32) - low) * (255 / (high - low))
    slack = 255 * 0.01
    if levels.min() < -slack or levels.max() > 255 + slack:
        raise DataError(
            f"{name} holds values from {pixels.min():.4g} to {pixels.max():.4g}, outside of "
            f"--float-range {low:g} {high:g}"
        )
    return np.rint(levels).clip(0, 255).astype(np.uint8)


def _header(stream):
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise DataError(f"NumPy's file format {version} is not known here")
    return read(stream)


def _find_member(path):
    """Name and size in bytes of the one array of images in an npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {e.filename: e.file_size for e in archive.infolist()}
            shapes = {}
            for name in sizes:
                if name.endswith(".npy"):
                    with archive.open(name) as stream:
                        shapes[name] = _header(stream)[0]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} is no npz file that can be read: {error}") from None
    images = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    if len(images) != 1:
        raise DataError(
            f"{path} must hold one array of images {_LAYOUTS}; it holds "
            f"{', '.join(f'{n[:-4]} {s}' for n, s in shapes.items()) or 'no arrays'}"
        )
    return images[0], sizes[images[0]]


def _layout(shape, path):
    if len(shape) == 3:
        layout = "HW"
    elif len(shape) == 4 and (shape[3] in (1, 3)) != (shape[1] in (1, 3)):
        layout = "HWC" if shape[3] in (1, 3) else "CHW"
    else:
        raise DataError(f"{path} is an array {shape}; images are {_LAYOUTS}")
    if 0 in shape:
        raise DataError(f"{path} is an array {shape} without images")
    return layout
