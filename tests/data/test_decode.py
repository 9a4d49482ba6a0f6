"""The one rule by which image files become pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_plugins.data.decode import decode, open_image
from evonorm_plugins.errors import BrokenImageError
from tests.data.conftest import encoded
from tests.metrics.conftest import pictures

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


@pytest.mark.parametrize("top", [255, 256, 65535], ids=lambda top: f"up to {top}")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_one_rule_whatever_the_largest_value(kind, top):
    """A dark image stays dark; in colour Pillow itself keeps the upper 8 bits."""
    ramp = np.linspace(0, top, 64).round().astype(np.uint16).reshape(8, 8)
    tensor = decode("x", encoded(Image.fromarray(ramp), kind))
    np.testing.assert_array_equal(tensor[0], ramp >> 8)


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint32])
def test_integers_of_unknown_range_are_refused(tmp_path, dtype):
    values = np.full((4, 4), 70_000 if dtype != np.int16 else 700, dtype)
    write_tiff(tmp_path / "x.tif", values)
    with pytest.raises(BrokenImageError, match=r"x\.tif .*integers of unknown range"):
        decode("x.tif", (tmp_path / "x.tif").read_bytes())


def write_tiff(path, values):
    """A TIFF of one strip of integers, which Pillow would write as other ones."""
    kind = 2 if np.issubdtype(values.dtype, np.signedinteger) else 1
    height, width = values.shape
    entries = [
        *((256, 3, width), (257, 3, height), (258, 3, values.itemsize * 8), (259, 3, 1)),
        *((262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, values.nbytes)),
        (339, 3, kind),
    ]
    data = values.tobytes()
    directory = len(entries).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )  # fmt: skip
    start = (8 + len(data)).to_bytes(4, "little")
    path.write_bytes(b"II*\0" + start + data + directory + bytes(4))


def test_orientation_tags_are_ignored():
    image = Image.fromarray(pictures(1, 8)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    tensor = decode("x.png", encoded(image, exif=exif))
    np.testing.assert_array_equal(tensor.permute(1, 2, 0), image)


def test_grey_and_drafts():
    image = Image.fromarray(pictures(1, 64)[0])
    assert open_image("x.png", encoded(image), "L").tobytes() == image.convert("L").tobytes()
    palette = image.quantize(9)
    assert open_image("x", encoded(palette, "GIF"), "L").tobytes() == palette.convert("L").tobytes()
    for draft, size in ((16, 16), (17, 32), (64, 64), (None, 64)):
        assert open_image("x.jpg", encoded(image, "JPEG"), draft=draft).size == (size, size)
    pixels = np.asarray(image)
    assert open_image("x", pixels).tobytes() == pixels.tobytes()


def test_a_bomb_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match=r"bomb\.png .*1024 pixels.*decompression bomb"):
        decode("bomb.png", encoded(Image.new("RGB", (32, 32))))
