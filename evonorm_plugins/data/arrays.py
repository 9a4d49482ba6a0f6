"""Images in a NumPy array, read from the file piece by piece."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from evonorm_plugins.errors import InputError

_LAYOUTS = "(N, H, W, 3), (N, 3, H, W), (N, H, W, 1), (N, 1, H, W) or (N, H, W)"


class ArraySource:
    """Images of an npy file, or of the one array of images in an npz file.

    Args:
        path: the file; the array is uint8 of one of the shapes in the error's text.
        float_range: (low, high) of floating point images, which are quantised as saving them
            would: to the nearest of 256 levels. None refuses them.

    Raises:
        InputError: no such array.
    """

    def __init__(self, path, float_range=None):
        self.path, self.float_range = Path(path), float_range
        self.member = None
        if self.path.suffix.lower() == ".npz":
            self.member = _find_member(self.path)
        try:
            with self._open() as stream:
                self.shape, fortran, self.dtype = _header(stream)
                self._offset = stream.tell()
        except InputError:
            raise
        except Exception as error:  # a file of another kind can fail anywhere in these readers
            raise InputError(f"{path} is no array that can be read: {error}") from None
        self._check(fortran)
        self._layout = _layout(self.shape, self.path)
        self._chosen = None

    def _check(self, fortran):
        if fortran:
            raise InputError(f"{self.path} is in Fortran order; save np.ascontiguousarray(images)")
        if self.dtype != np.uint8:
            floats = self.dtype.kind == "f"
            if floats and self.float_range:
                return
            how = (
                "say what is black and white with --float-range 0 1 (or -1 1, 0 255), or save them "
                "as uint8"
                if floats
                else "save them as uint8, 0 to 255"
            )
            raise InputError(f"{self.path} holds {self.dtype} images; {how}")

    def __len__(self):
        return self.shape[0] if self._chosen is None else len(self._chosen)

    def describe(self):
        extra = {"float_range": list(self.float_range)} if self.dtype.kind == "f" else {}
        return {"path": str(self.path), "broken_files_skipped": 0, **extra}

    def choose(self, indices):
        """Keep the images at ``indices``, which must rise."""
        self._chosen = np.asarray(indices)

    def drop_broken(self, workers=0, progress=iter):
        """An array has no broken images."""
        return []

    def batches(self, size, *, process=0, processes=1, workers=0, pin=False):
        """Yield ``(indices, images)``, images uint8 (B, 3, H, W).

        Raises:
            InputError: the file is cut off.
        """
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with self._open() as stream:
            for start in range(process * size, len(self), processes * size):
                indices = list(range(start, min(start + size, len(self))))
                places = indices if self._chosen is None else self._chosen[indices]
                parts = []
                for place in places:
                    stream.seek(self._offset + int(place) * row)
                    parts.append(self._read(stream, row, place))
                pixels = np.frombuffer(b"".join(parts), self.dtype)
                yield indices, self._images(pixels.reshape(len(parts), *self.shape[1:]))

    def _read(self, stream, row, place):
        try:
            content = stream.read(row)
        except Exception as error:  # of zlib or a wrong checksum
            raise InputError(f"{self.path}: image {place} cannot be read: {error}") from None
        if len(content) < row:
            raise InputError(
                f"{self.path} is cut off: it should hold {self.shape[0]} images, {place} are there"
            )
        return content

    def _images(self, pixels):
        if pixels.dtype != np.uint8:
            pixels = _quantise(pixels, *self.float_range, self.path)
        if self._layout == "HW":
            pixels = pixels[..., None]
        images = torch.from_numpy(pixels.copy())
        if self._layout != "CHW":
            images = images.permute(0, 3, 1, 2)
        return images.expand(-1, 3, -1, -1).contiguous()

    def _open(self):
        if self.member is None:
            return open(self.path, "rb")
        return _Member(self.path, self.member)


class _Member:
    """A member of a zip file as a stream; closes both."""

    def __init__(self, path, name):
        self.archive = zipfile.ZipFile(path)
        self.stream = self.archive.open(name)
        self.read, self.seek, self.tell = self.stream.read, self.stream.seek, self.stream.tell

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stream.close()
        self.archive.close()


def _quantise(pixels, low, high, path):
    """As saving them would: rounded to 256 levels, what is outside cut off."""
    if not np.isfinite(pixels).all():
        raise InputError(f"{path} holds values that are not finite")
    levels = (pixels.astype(np.float32) - low) * (255 / (high - low))
    slack = 255 * 0.01
    if levels.min() < -slack or levels.max() > 255 + slack:
        raise InputError(
            f"{path} holds values from {pixels.min():.4g} to {pixels.max():.4g}, outside of "
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
        raise InputError(f"NumPy's file format {version} is not known here")
    return read(stream)


def _find_member(path):
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as stream:
                        shapes[name] = _header(stream)[0]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no npz file that can be read: {error}") from None
    images = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    if len(images) != 1:
        raise InputError(
            f"{path} must hold one array of images {_LAYOUTS}; it holds "
            f"{', '.join(f'{n[:-4]} {s}' for n, s in shapes.items()) or 'no arrays'}"
        )
    return images[0]


def _layout(shape, path):
    if len(shape) == 3:
        layout = "HW"
    elif len(shape) == 4 and (shape[3] in (1, 3)) != (shape[1] in (1, 3)):
        layout = "HWC" if shape[3] in (1, 3) else "CHW"
    else:
        raise InputError(f"{path} is an array {shape}; images are {_LAYOUTS}")
    if 0 in shape:
        raise InputError(f"{path} is an array {shape} without images")
    return layout
