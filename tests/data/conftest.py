"""Images and sets of images, made on the spot."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.biggan.pictures import picture


def encoded(image, kind="PNG", **options):
    """The bytes of an image file of a ``PIL.Image.Image`` or an array."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path, samples):
    with tarfile.open(path, "w") as shard:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return path


def write_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is kept lies here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def every_kind(tmp_path):
    """The same six images of two classes in every form."""
    images = [(label, number, picture(label, number)) for label in range(2) for number in range(3)]
    for label, number, data in images:
        file = tmp_path / f"folder/{label}/deeper/{number}.PNG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (tmp_path / "folder/0/notes.txt").write_text("no image")
    members = {f"a/train/{label}/{number}.png": data for label, number, data in images}
    members["__MACOSX/a/._0.png"] = b""
    for name, method in (
        ("stored", zipfile.ZIP_STORED),
        ("deflated", zipfile.ZIP_DEFLATED),
        ("bzip2", zipfile.ZIP_BZIP2),
    ):
        write_zip(tmp_path / f"{name}.zip", members, method)
    for k in range(2):
        samples = []
        for label, number, data in images[k::2]:
            key = f"{label}{number}"
            samples += [(f"{key}.cls", str(label).encode()), (f"{key}.png", data)]
        write_tar(tmp_path / f"shard-{k}.tar", samples)
    arrays = np.stack([np.asarray(Image.open(io.BytesIO(data))) for *_, data in images])
    h5py = pytest.importorskip("h5py")
    labels = [label for label, *_ in images]
    for name, layout in (("first", arrays.transpose(0, 3, 1, 2)), ("last", arrays)):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as f:
            f["imgs"], f["labels"] = layout, labels
    return tmp_path, arrays


KINDS = [
    *("folder", "stored.zip", "deflated.zip", "bzip2.zip", "shard-*.tar", "first.hdf5"),
    "last.hdf5",
]
