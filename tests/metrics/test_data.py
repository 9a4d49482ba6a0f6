"""Sets of images batch for batch, and what is said about broken ones."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_plugins.errors import BrokenImageError, InputError
from evonorm_plugins.metrics.data import ImageSet
from tests.metrics.conftest import pictures, save_pngs


def all_images(source, size=4, **options):
    return [image for _, batch in source.batches(size, **options) for image in batch]


@pytest.fixture
def folder(tmp_path):
    """Seven pictures in subfolders with extensions of any case, and things that are none."""
    images = pictures(7, 16)
    names = ["b/x.JPEG", "a/0.png", "a/1.PNG", "c.webp", "b/deep/er/y.Jpg", "d.bmp", "e.tif"]
    for image, name in zip(images, names, strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "images/readme.txt").write_text("no image")
    (tmp_path / "images/.hidden.png").write_text("no image")
    (tmp_path / "images/__MACOSX").mkdir()
    (tmp_path / "images/__MACOSX/x.png").write_text("no image")
    return tmp_path / "images"


def zipped(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("kind", [lambda f: f, zipped], ids=["folder", "zip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_folder_and_zip(folder, kind, workers):
    source = ImageSet(kind(folder))
    assert list(source.source.names) == sorted(
        ["a/0.png", "a/1.PNG", "b/deep/er/y.Jpg", "b/x.JPEG", "c.webp", "d.bmp", "e.tif"]
    )
    images = all_images(source, workers=workers)
    assert len(images) == len(source) == 7
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), pictures(7, 16)[1])


def test_processes_share_the_batches_of_one(folder):
    source = ImageSet(folder)
    one = list(source.batches(2))
    two = [list(source.batches(2, process=k, processes=2)) for k in range(2)]
    for k, (indices, images) in enumerate(one):
        other_indices, other_images = two[k % 2][k // 2]
        assert indices == other_indices
        assert torch.equal(images, other_images)
    assert [i for indices, _ in one for i in indices] == list(range(7))


def test_mixed_sizes_come_as_a_list(tmp_path):
    save_pngs(pictures(2, 16), tmp_path / "x")
    save_pngs(pictures(1, 20), tmp_path / "x/y")
    ((_, images),) = ImageSet(tmp_path / "x").batches(4)
    assert [tuple(image.shape) for image in images] == [(3, 16, 16)] * 2 + [(3, 20, 20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file_is_named_or_skipped(folder, workers):
    (folder / "a/0.png").write_bytes(b"\x89PNG\r\n")
    (folder / "zzz.jpg").write_bytes(b"")
    source = ImageSet(folder)
    with pytest.raises(BrokenImageError, match=r"a/0\.png .*--skip-broken"):
        all_images(source, workers=workers)
    messages = source.drop_broken(workers)
    assert [m.split()[0] for m in messages] == [f"{folder}/a/0.png", f"{folder}/zzz.jpg"]
    assert len(all_images(source, workers=workers)) == len(source) == 6
    assert source.describe()["broken_files_skipped"] == 2


def test_broken_member_of_a_zip(folder):
    path = zipped(folder)
    content = bytearray(path.read_bytes())
    at = content.index((folder / "d.bmp").read_bytes()[:40]) + 30
    content[at] ^= 255  # its checksum is wrong now
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match=r"images\.zip:d\.bmp"):
        all_images(ImageSet(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "gone", "there is no file or folder"),
        (lambda p: p, "holds no images .*; it is empty"),
        (lambda p: (p / "x.zip").write_bytes(b"PK\x03\x04 cut") and p / "x.zip", "cut off"),
        (lambda p: (p / "x.tar").write_bytes(b"abc") and p / "x.tar", "neither a folder"),
        (lambda p: (p / "x.npy").write_bytes(b"abc") and p / "x.npy", "no array"),
        (lambda p: (p / "x.npz").write_bytes(b"abc") and p / "x.npz", "no npz"),
        (lambda p: (p / "notes.txt").write_text("hi") and p, "it holds notes.txt"),
    ],
)
def test_what_is_no_set_of_images(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        ImageSet(make(tmp_path))


def test_zip_with_a_password_or_without_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w"):
        pass
    with pytest.raises(InputError, match="it is empty"):
        ImageSet(tmp_path / "x.zip")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["NHWC", "NCHW"])
def test_arrays(tmp_path, save, axes):
    images = pictures(9, 12)
    path = tmp_path / f"x.{'npy' if save is np.save else 'npz'}"
    save(path, np.ascontiguousarray(images.transpose(axes)))
    source = ImageSet(path)
    assert len(source) == 9
    np.testing.assert_array_equal(torch.stack(all_images(source)).permute(0, 2, 3, 1), images)
    second = list(source.batches(2, process=1, processes=2))
    assert [indices for indices, _ in second] == [[2, 3], [6, 7]]
    np.testing.assert_array_equal(second[1][1][0].permute(1, 2, 0), images[6])
    source.choose([1, 5, 8])
    np.testing.assert_array_equal(
        torch.stack(all_images(source, 2)).permute(0, 2, 3, 1), images[[1, 5, 8]]
    )
