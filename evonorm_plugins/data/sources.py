"""Folders and zip files of images, a folder for every class.

A source has ``classes`` (names), ``labels`` (an array ``(N,)`` of class numbers), ``read(i)`` (the
bytes of an image file, or uint8 ``(H, W, 3)``), ``name(i)`` for messages, and ``blocks``: the first
numbers of runs of images that lie together in one file and are quickest read near each other.
Sources are small in memory and may be used by several processes at once.
"""

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from evonorm_plugins.data.images import is_image
from evonorm_plugins.errors import DataError


class Names:
    """Many strings as one buffer: a list of objects would be copied by every worker process."""

    def __init__(self, names):
        encoded = [os.fsencode(name) for name in names]
        self.buffer = b"".join(encoded)
        self.ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.buffer[start : self.ends[i]])


class ReadFile:
    """A file read at given places, with a descriptor of its own in every process."""

    def __init__(self, path):
        self.path, self.pid, self.descriptor = str(path), None, None

    def read(self, offset, size):
        if self.pid != os.getpid():
            self.pid, self.descriptor = os.getpid(), os.open(self.path, os.O_RDONLY)
        return os.pread(self.descriptor, size, offset)

    def __getstate__(self):
        return {"path": self.path, "pid": None, "descriptor": None}


class FolderSource:
    """``path/CLASS/**/image.jpg``."""

    blocks = None

    def __init__(self, path):
        self.path = Path(path)
        self.classes = sorted(e.name for e in os.scandir(path) if _is_class(e))
        if not self.classes:
            raise DataError(f"{path} has no class folders; images belong in {path}/CLASS/")
        names, labels = [], []
        for number, name in enumerate(self.classes):
            found = sorted(
                os.path.relpath(os.path.join(folder, file), path)
                for folder, _, files in os.walk(self.path / name, followlinks=True)
                for file in files
                if is_image(file)
            )
            names += found
            labels += [number] * len(found)
        self.names, self.labels = Names(names), np.array(labels, np.int64)
        check_classes(path, self.classes, self.labels)

    def read(self, i):
        return (self.path / self.names[i]).read_bytes()

    def name(self, i):
        return str(self.path / self.names[i])


class ZipSource:
    """A zip file of class folders, read in place; leading folders that all share are ignored."""

    blocks = None

    def __init__(self, path):
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [e for e in archive.infolist() if "__MACOSX" not in e.filename]
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        folders = {tuple(e.filename.rstrip("/").split("/")) for e in entries if e.is_dir()}
        entries = sorted((e for e in entries if is_image(e.filename)), key=lambda e: e.filename)
        parents = [tuple(e.filename.split("/")[:-1]) for e in entries]
        if not entries or min(map(len, parents)) == 0:
            what = f"image {entries[0].filename} is" if entries else "no images are"
            raise DataError(f"{path}: {what} in a class folder; images belong in CLASS/image.jpg")
        depth = _shared_depth(parents)
        named = {p[depth] for p in parents} | {f[depth] for f in folders if len(f) == depth + 1}
        self.classes = sorted(named)
        numbers = {name: k for k, name in enumerate(self.classes)}
        self.labels = np.array([numbers[p[depth]] for p in parents], np.int64)
        check_classes(path, self.classes, self.labels)
        for e in entries:
            if e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{path}: {e.filename} is compressed by another method than deflate"
                )
            if e.flag_bits & 1:
                raise DataError(f"{path}: {e.filename} is encrypted")
        self.names = Names([e.filename for e in entries])
        self.entries = np.array(
            [(e.header_offset, e.compress_size, e.compress_type, e.CRC) for e in entries], np.int64
        )
        self.file = ReadFile(path)

    def read(self, i):
        offset, size, method, crc = map(int, self.entries[i])
        header = self.file.read(offset, 30)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        data = self.file.read(offset + 30 + name_length + extra_length, size)
        try:
            data = zlib.decompress(data, -15) if method == zipfile.ZIP_DEFLATED else data
        except zlib.error as error:
            raise OSError(f"cannot be unpacked: {error}") from None
        if zlib.crc32(data) != crc:
            raise OSError("its checksum is wrong")
        return data

    def name(self, i):
        return f"{self.file.path}:{self.names[i]}"


def _is_class(entry):
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def _shared_depth(parents):
    """How many leading folders all images share, the last one of each aside."""
    depth, shortest = 0, min(map(len, parents))
    while depth < shortest - 1 and len({p[depth] for p in parents}) == 1:
        depth += 1
    return depth


def check_classes(path, classes, labels):
    """Raise :class:`DataError`, naming them, where classes have no images."""
    counts = np.bincount(labels, minlength=len(classes)) if len(labels) else np.zeros(len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataError(f"{path}: {len(empty)} of {len(classes)} classes have no images: {shown}")
