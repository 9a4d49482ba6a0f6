"""Where images come from: folders, zip files, arrays.

A source has a length, and gives the batches of one process of several: batch k goes to process
``k % processes``, so that the batches, and with them the features, do not depend on the number of
processes.
"""

import os
import zipfile
from pathlib import Path

import torch

from evonorm_plugins.data.arrays import ArraySource
from evonorm_plugins.data.decode import EXTENSIONS, decode
from evonorm_plugins.errors import BrokenImageError, InputError, first


class FileSource:
    """Images that are files of a folder, subfolders included, or of a zip file.

    Args:
        path: the folder or zip file.

    Raises:
        InputError: it is not there, is no zip file, or holds no images.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._archive = None
        names = _zip_names(self.path) if self.path.is_file() else _folder_names(self.path)
        self.names = sorted(n for n in names if n.lower().endswith(EXTENSIONS))
        if not self.names:
            others = f"; it holds {first(sorted(names))}" if names else "; it is empty"
            raise InputError(
                f"{path} holds no images ({', '.join(EXTENSIONS)}, subfolders included){others}"
            )
        self.skipped = []

    def __len__(self):
        return len(self.names)

    def describe(self):
        return {"path": str(self.path), "broken_files_skipped": len(self.skipped)}

    def __getitem__(self, index):
        """uint8 (3, H, W), or the error: workers' exceptions would lose their type."""
        name = self.names[index]
        try:
            return decode(name, self._read(name))
        except BrokenImageError as error:
            return error

    def _read(self, name):
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            # An open file must not be shared by worker processes.
            if self._archive is None or self._archive[0] != os.getpid():
                self._archive = os.getpid(), zipfile.ZipFile(self.path)
            return self._archive[1].read(name)
        except Exception as error:  # of the file system, zlib, or an encrypted archive
            raise BrokenImageError(f"{name} of {self.path} cannot be read: {error}") from None

    def __getstate__(self):
        return {**self.__dict__, "_archive": None}

    def choose(self, indices):
        """Keep the images at ``indices``."""
        self.names = [self.names[k] for k in indices]

    def drop_broken(self, workers=0, progress=iter):
        """Read every image, leave out those that cannot be, return their messages."""
        loader = self._loader([[k] for k in range(len(self))], workers)
        results = [batch[0] for batch in progress(map(_errors, loader))]
        self.skipped = [str(error) for error in results if error is not None]
        self.choose([k for k, error in enumerate(results) if error is None])
        if not self.names:
            raise InputError(
                f"{self.path}: none of {len(results)} images can be read: {first(self.skipped, 2)}"
            )
        return self.skipped

    def batches(self, size, *, process=0, processes=1, workers=0, pin=False):
        """Yield ``(indices, images)``: a tensor (B, 3, H, W), a list where sizes differ.

        Raises:
            BrokenImageError: names the first image that cannot be read.
        """
        groups = _groups(len(self), size)[process::processes]
        for indices, images in zip(groups, self._loader(groups, workers, pin), strict=True):
            broken = next((image for image in images if isinstance(image, Exception)), None)
            if broken is not None:
                raise BrokenImageError(f"{broken}; --skip-broken leaves out such files")
            yield indices, images

    def _loader(self, groups, workers, pin=False):
        return torch.utils.data.DataLoader(
            self,
            batch_sampler=groups,
            num_workers=min(workers, len(groups)),
            collate_fn=_collate,
            pin_memory=pin,
        )


def _groups(n, size):
    return [list(range(k, min(k + size, n))) for k in range(0, n, size)]


def _collate(images):
    shapes = {None if isinstance(image, Exception) else image.shape for image in images}
    return torch.stack(images) if len(shapes) == 1 and None not in shapes else images


def _errors(images):
    return [image if isinstance(image, Exception) else None for image in images]


def _folder_names(path):
    if not path.is_dir():
        raise InputError(f"there is no file or folder {path}")
    names = []
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = [f for f in folders if f != "__MACOSX"]
        names += [Path(folder, f).relative_to(path).as_posix() for f in files if f[0] != "."]
    return names


def _zip_names(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is no zip file or is cut off: {error}"
        ) from None
    parts = ((name, name.split("/")) for name in names)
    return [name for name, p in parts if "__MACOSX" not in p and p[-1][:1] != "."]


def open_images(path, float_range=None):
    """The source for a folder, zip, npz or npy file.

    Raises:
        InputError: it is none of these.
    """
    path = Path(path)
    if path.suffix.lower() in (".npy", ".npz") and path.is_file():
        return ArraySource(path, float_range)
    if path.is_dir() or not path.exists() or zipfile.is_zipfile(path):
        return FileSource(path)
    raise InputError(
        f"{path} ({path.stat().st_size} bytes) is neither a folder of images nor a zip, npz or npy "
        "file; is it cut off?"
    )
