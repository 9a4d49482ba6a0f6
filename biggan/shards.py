"""Tar shards in the naming of WebDataset: ``KEY.jpg`` and ``KEY.cls`` (the class number) in turn.

The shards are indexed once; the index is kept in the user's cache folder, so that the next run
starts at once. Images are then read in place, in any order.
"""

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np

from biggan.sources import _numbered_classes
from evonorm_plugins.data.images import is_image
from evonorm_plugins.data.sources import Names, ReadFile
from evonorm_plugins.errors import DataError
from evonorm_plugins.training.checkpoint import replacing


class TarSource:
    """``paths``: uncompressed .tar files."""

    def __init__(self, paths):
        index = _cached_index(paths)
        self.files = [ReadFile(path) for path in paths]
        self.names = Names(index["names"].tolist())
        self.places, self.labels = index["places"], index["labels"]
        self.classes = _numbered_classes(f"{paths[0]} ({len(paths)} shards)", self.labels)
        self.blocks = np.searchsorted(self.places[:, 0], np.arange(len(paths)))

    def read(self, i):
        shard, offset, size = map(int, self.places[i])
        return self.files[shard].read(offset, size)

    def name(self, i):
        return f"{self.files[int(self.places[i, 0])].path}:{self.names[i]}"


def _cached_index(paths):
    stamp = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        stamp.update(f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evonorm/shards"
    cached = folder / f"{stamp.hexdigest()[:24]}.npz"
    if cached.is_file():
        with np.load(cached) as index:
            return dict(index)
    index = _index(paths)
    try:
        with replacing(cached) as partial:
            np.savez(partial, **index)
    except (OSError, ValueError):
        pass  # no such folder can be made, or it is full: the next run indexes again
    return index


def _index(paths):
    names, places, labels = [], [], []
    for number, path in enumerate(paths):
        images, classes = _read_shard(path)
        missing = [key for key in images if key not in classes]
        if missing or not images:
            what = f"{missing[0]} has no .cls file" if missing else "it holds no images"
            raise DataError(f"{path}: {what}; samples are KEY.jpg with KEY.cls")
        for key, (name, offset, size) in images.items():
            names.append(name)
            places.append((number, offset, size))
            labels.append(classes[key])
    return {
        "names": np.array(names),
        "places": np.array(places, np.int64),
        "labels": np.array(labels, np.int64),
    }


def _read_shard(path):
    """Images by key ``(name, offset, size)``, and classes by key."""
    images, classes = {}, {}
    try:
        # "r:" refuses compressed files, which cannot be read in place.
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, base = member.name.rpartition("/")
                key = f"{folder}/{base.partition('.')[0]}"
                if not member.isfile():
                    continue
                if base.endswith(".cls"):
                    text = shard.extractfile(member).read().decode(errors="replace").strip()
                    if not text.isdigit():
                        raise DataError(f"{path}:{member.name} is {text!r}, not a class number")
                    classes[key] = int(text)
                elif is_image(member.name):
                    images[key] = (member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar file: {error}") from None
    return images, classes
