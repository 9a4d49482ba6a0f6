"""Folders of images."""

import os
from pathlib import Path

import numpy as np

from evonorm_plugins.data.formats import image_names, no_images
from evonorm_plugins.data.source import Names, Source, check_classes
from evonorm_plugins.errors import DataError


class FolderSource(Source):
    """``path/CLASS/**/image.jpg``; or without classes all images, subfolders included.

    Images are in the order of their classes, then of their paths.

    Raises:
        DataError: there are no images, or a class has none, or a folder cannot be read.
    """

    def __init__(self, path, *, with_classes=True):
        self.path = Path(path)
        try:
            self.classes = class_folders(path) if with_classes else None
            names = list(_files(path))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if self.classes == []:
            raise DataError(f"{path} has no class folders; images belong in {path}/CLASS/")
        images = image_names(path, names)
        if with_classes:
            numbers = {name: k for k, name in enumerate(self.classes)}
            found = sorted(
                (numbers[name.partition("/")[0]], name)
                for name in images
                if name.partition("/")[0] in numbers
            )
            self.labels = np.array([label for label, _ in found], np.int64)
            check_classes(path, self.classes, self.labels)
            images = [name for _, name in found]
        elif images:
            self.labels = np.zeros(len(images), np.int64)
        else:
            raise no_images(path, names)
        self.names = Names(images)

    def read(self, i):
        return Path(self.name(i)).read_bytes()

    def name(self, i):
        return str(self.path / self.names[i])

    def files(self):
        return [self.name(i) for i in range(len(self))]


def _files(path):
    """Names of all files below, relative to ``path``."""
    for folder, _, files in os.walk(path, followlinks=True, onerror=_raise):
        inside = os.path.relpath(folder, path)
        yield from files if inside == "." else (f"{inside}/{file}" for file in files)


def _raise(error):
    raise error


def class_folders(path):
    """Names of the folders in a folder, hidden ones aside, sorted."""
    entries = (e for e in os.scandir(path) if not e.name.startswith((".", "__")))
    return sorted(e.name for e in entries if e.is_dir())
