"""Tar shards in the naming of WebDataset: ``KEY.jpg`` and ``KEY.cls`` (the class number) in turn.

The shards are indexed once; the index is kept in the user's cache folder, so that the next run
starts at once. Images are then read in place, in any order.
"""

import tarfile

import numpy as np

from evonorm_plugins.data.cache import cached
from evonorm_plugins.data.formats import is_image
from evonorm_plugins.data.source import Names, PerProcess, Source, numbered_classes, pread
from evonorm_plugins.errors import DataError


class TarSource(Source):
    """Images of uncompressed tar files; the shards are its blocks.

    Raises:
        DataError: a file is none, a sample has no class, or a class has no images.
    """

    def __init__(self, paths):
        self.paths = list(map(str, paths))
        index = cached("shards", self.paths, ("names", "places", "labels"), self._index)
        self.shards = [PerProcess(open, path, "rb", 0) for path in self.paths]
        self.names = Names(index["names"].tolist())
        self.places, self.labels = index["places"], index["labels"]
        self.classes = numbered_classes(f"{self.paths[0]} ({len(paths)} shards)", self.labels)
        self.blocks = np.searchsorted(self.places[:, 0], np.arange(len(paths)))

    def read(self, i):
        shard, offset, size = map(int, self.places[i])
        return pread(self.shards[shard], offset, size)

    def name(self, i):
        return f"{self.paths[int(self.places[i, 0])]}:{self.names[i]}"

    def files(self):
        return self.paths

    def _index(self):
        names, places, labels = [], [], []
        for number, path in enumerate(self.paths):
            images, classes = _read_shard(path)
            missing = [key for key in images if key not in classes]
            if missing or not images:
                what = f"{missing[0]} has no .cls file" if missing else "it holds no images"
                raise DataError(f"{path}: {what}; samples are KEY.jpg with KEY.cls")
            for key, (name, offset, size) in images.items():
                names.append(name)
                places.append((number, offset, size))
                labels.append(classes[key])
        return np.array(names), np.array(places, np.int64), np.array(labels, np.int64)


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
                    if not (text.isdecimal() and len(text) < 10):
                        raise DataError(f"{path}:{member.name} is {text!r}, not a class number")
                    classes[key] = int(text)
                elif is_image(member.name):
                    images[key] = (member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar file: {error}") from None
    return images, classes
