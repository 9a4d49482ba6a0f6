"""Every kind of image and container, and what is said about broken ones."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_plugins.data.arrays import ArraySource
from evonorm_plugins.data.decode import decode
from evonorm_plugins.errors import BrokenImageError, InputError
from evonorm_plugins.metrics.images import FileSource, open_images
from tests.metrics.conftest import pictures, save_pngs


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def all_images(source, size=4, **options):
    return [image for _, batch in source.batches(size, **options) for image in batch]


GRAY = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)


@pytest.mark.parametrize(
    "image",
    [
        GRAY,
        GRAY.convert("1"),
        GRAY.convert("LA"),
        GRAY.convert("RGBA"),
        Image.fromarray(pictures(1, 8)[0]).quantize(9),
        Image.fromarray(pictures(1, 8)[0]),
    ],
    ids=lambda image: image.mode,
)
def test_modes_become_rgb_as_pillow_makes_them(image):
    tensor = decode("x.png", encoded(image))
    assert tensor.shape == (3, image.height, image.width)
    assert tensor.dtype == torch.uint8
    np.testing.assert_array_equal(tensor.permute(1, 2, 0), image.convert("RGB"))


def test_16_bits_keep_the_upper_8():
    values = (np.arange(48).reshape(6, 8) * 1300).astype(np.uint16)
    tensor = decode("x.png", encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(tensor[0], values >> 8)
    assert torch.equal(tensor[0], tensor[2])


def test_transparency_is_dropped():
    rgba = np.dstack([pictures(1, 8)[0], np.zeros((8, 8), np.uint8)])
    tensor = decode("x.png", encoded(Image.fromarray(rgba)))
    np.testing.assert_array_equal(tensor.permute(1, 2, 0), rgba[:, :, :3])


def test_floats_of_unknown_range_are_refused():
    with pytest.raises(BrokenImageError, match=r"x\.tif .* floating point"):
        decode("x.tif", encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_cut_off_files_are_named(kind):
    content = encoded(Image.fromarray(pictures(1, 64)[0]), kind)
    assert decode("a", content).shape == (3, 64, 64)
    with pytest.raises(BrokenImageError, match=r"b \(\d+ bytes\) cannot be read"):
        decode("b", content[: len(content) // 2])


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd tags
def test_fuzzed_files_never_raise_anything_else():
    rng = np.random.default_rng(0)
    seeds = [
        encoded(Image.fromarray(pictures(1, 24)[0]), k) for k in ("JPEG", "PNG", "TIFF", "WEBP")
    ]
    outcomes = set()
    for k in range(300):
        content = bytearray(seeds[k % len(seeds)])
        for place in rng.integers(0, len(content), rng.integers(1, 12)):
            content[place] = rng.integers(0, 256)
        try:
            end = len(content) if k % 2 else rng.integers(1, len(content))
            tensor = decode("x", bytes(content[:end]))
            outcomes.add(tensor.dtype)
        except BrokenImageError:
            outcomes.add(None)
    assert outcomes == {torch.uint8, None}


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
    source = open_images(kind(folder))
    assert source.names == sorted(
        ["a/0.png", "a/1.PNG", "b/deep/er/y.Jpg", "b/x.JPEG", "c.webp", "d.bmp", "e.tif"]
    )
    images = all_images(source, workers=workers)
    assert len(images) == len(source) == 7
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), pictures(7, 16)[1])


def test_processes_share_the_batches_of_one(folder):
    source = open_images(folder)
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
    ((_, images),) = open_images(tmp_path / "x").batches(4)
    assert [tuple(image.shape) for image in images] == [(3, 16, 16)] * 2 + [(3, 20, 20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file_is_named_or_skipped(folder, workers):
    (folder / "a/0.png").write_bytes(b"\x89PNG\r\n")
    (folder / "zzz.jpg").write_bytes(b"")
    source = open_images(folder)
    with pytest.raises(BrokenImageError, match=r"a/0\.png .*--skip-broken"):
        all_images(source, workers=workers)
    messages = source.drop_broken(workers)
    assert [m.split()[0] for m in messages] == ["a/0.png", "zzz.jpg"]
    assert len(all_images(source, workers=workers)) == len(source) == 6
    assert source.describe()["broken_files_skipped"] == 2


def test_broken_member_of_a_zip(folder):
    path = zipped(folder)
    content = bytearray(path.read_bytes())
    at = content.index((folder / "d.bmp").read_bytes()[:40]) + 30
    content[at] ^= 255  # its checksum is wrong now
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match=r"d\.bmp of .*images\.zip"):
        all_images(open_images(path))


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
        open_images(make(tmp_path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["NHWC", "NCHW"])
def test_arrays(tmp_path, save, axes):
    images = pictures(9, 12)
    path = tmp_path / f"x.{'npy' if save is np.save else 'npz'}"
    save(path, np.ascontiguousarray(images.transpose(axes)))
    source = open_images(path)
    assert len(source) == 9
    np.testing.assert_array_equal(torch.stack(all_images(source)).permute(0, 2, 3, 1), images)
    second = list(source.batches(2, process=1, processes=2))
    assert [indices for indices, _ in second] == [[2, 3], [6, 7]]
    np.testing.assert_array_equal(second[1][1][0].permute(1, 2, 0), images[6])
    source.choose([1, 5, 8])
    np.testing.assert_array_equal(
        torch.stack(all_images(source, 2)).permute(0, 2, 3, 1), images[[1, 5, 8]]
    )


def test_gray_arrays_and_labels_beside(tmp_path):
    gray = pictures(3, 12)[..., 0]
    np.savez(tmp_path / "x.npz", arr_0=gray, arr_1=np.arange(3))
    images = torch.stack(all_images(open_images(tmp_path / "x.npz")))
    np.testing.assert_array_equal(images[:, 1], gray)
    assert images.shape == (3, 3, 12, 12)


def test_floats_are_quantised_as_saving_them_would(tmp_path):
    images = pictures(4, 12)
    rng = np.random.default_rng(0)
    noisy = images / 127.5 - 1 + rng.uniform(-0.4, 0.4, images.shape) / 127.5
    np.save(tmp_path / "x.npy", noisy.astype(np.float32))
    with pytest.raises(InputError, match="float32 images; say what is black"):
        open_images(tmp_path / "x.npy")
    source = open_images(tmp_path / "x.npy", (-1, 1))
    np.testing.assert_array_equal(torch.stack(all_images(source)).permute(0, 2, 3, 1), images)
    with pytest.raises(InputError, match="outside of --float-range 0 1"):
        all_images(open_images(tmp_path / "x.npy", (0, 1)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"\(4, 5\)"),
        (np.zeros((4, 3, 8, 3), np.uint8), r"\(4, 3, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "without images"),
        (np.zeros((4, 8, 8, 3), np.int64), "int64 images; save them as uint8"),
        (np.asfortranarray(np.zeros((4, 8, 8, 3), np.uint8)), "Fortran"),
        (np.array([{}]), "object"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        ArraySource(tmp_path / "x.npy")


def test_cut_off_arrays(tmp_path):
    for save, name in ((np.save, "x.npy"), (np.savez_compressed, "x.npz")):
        save(tmp_path / name, pictures(20, 16))
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=name):
            all_images(open_images(tmp_path / name))


def test_zip_with_a_password_or_without_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w"):
        pass
    with pytest.raises(InputError, match="it is empty"):
        FileSource(tmp_path / "x.zip")
