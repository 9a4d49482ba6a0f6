"""Zip files of images, read in place."""

import struct
import zipfile
import zlib

import numpy as np

from evonorm_plugins.data.formats import image_names, no_images
from evonorm_plugins.data.source import Names, PerProcess, Source, check_classes, pread
from evonorm_plugins.errors import DataError


class ZipSource(Source):
    """Images of a zip file in the order of their names.

    With classes they lie in class folders; leading folders that all share are ignored.

    Raises:
        DataError: it is no zip file, is encrypted, holds no images, or a class has none.
    """

    def __init__(self, path, *, with_classes=True):
        self.path = str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except Exception as error:  # zipfile's reader raises many kinds for a damaged file
            raise DataError(
                f"{path} cannot be read as a zip file: {error}; is it cut off?"
            ) from None
        entries = {e.filename: e for e in members}  # of one name, the last counts
        files = [e.filename for e in members if not e.is_dir()]
        images = image_names(path, files)
        if with_classes:
            folders = [name for name in entries if name.endswith("/")]
            self.classes, self.labels = _classes(path, images, folders)
        elif images:
            self.labels = np.zeros(len(images), np.int64)
        else:
            raise no_images(path, files)
        for name in images:
            if entries[name].flag_bits & 1:
                raise DataError(f"{path}: {name} is encrypted")
        self.names = Names(images)
        self.entries = np.array([_entry(entries[name]) for name in images], np.int64)
        self.file = PerProcess(open, self.path, "rb", 0)
        self.archive = PerProcess(zipfile.ZipFile, self.path)

    def read(self, i):
        offset, size, method, crc = map(int, self.entries[i])
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return self.archive().read(self.names[i])
        header = pread(self.file, offset, 30)
        if len(header) < 30:
            raise OSError("the zip file is cut off")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        data = pread(self.file, offset + 30 + name_length + extra_length, size)
        data = zlib.decompress(data, -15) if method == zipfile.ZIP_DEFLATED else data
        if zlib.crc32(data) != crc:
            raise OSError("its checksum is wrong")
        return data

    def name(self, i):
        return f"{self.path}:{self.names[i]}"

    def files(self):
        return [self.path]


def _entry(e):
    return e.header_offset, e.compress_size, e.compress_type, e.CRC


def _classes(path, images, folders):
    """Names of the classes, and labels, of names of images and of folders in a zip file."""
    parents = [name.split("/")[:-1] for name in images]
    if not images or min(map(len, parents)) == 0:
        what = f"image {images[0]} is" if images else "no images are"
        raise DataError(f"{path}: {what} in a class folder; images belong in CLASS/image.jpg")
    depth, shortest = 0, min(map(len, parents))
    while depth < shortest - 1 and len({p[depth] for p in parents}) == 1:
        depth += 1
    folders = [name.rstrip("/").split("/") for name in folders if "__MACOSX" not in name]
    named = {p[depth] for p in parents} | {f[depth] for f in folders if len(f) == depth + 1}
    classes = sorted(named)
    numbers = {name: k for k, name in enumerate(classes)}
    labels = np.array([numbers[p[depth]] for p in parents], np.int64)
    check_classes(path, classes, labels)
    return classes, labels
