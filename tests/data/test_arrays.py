"""Images in NumPy arrays."""

import numpy as np
import pytest

from evonorm_plugins.data.arrays import ArraySource
from evonorm_plugins.data.open import open_images
from evonorm_plugins.errors import InputError
from tests.metrics.conftest import pictures


def all_pixels(source):
    return np.stack([source.read(i) for i in range(len(source))])


def test_gray_arrays_and_labels_beside(tmp_path):
    gray = pictures(3, 12)[..., 0]
    np.savez(tmp_path / "x.npz", arr_0=gray, arr_1=np.arange(3))
    images = all_pixels(open_images(tmp_path / "x.npz"))
    np.testing.assert_array_equal(images[..., 1], gray)
    assert images.shape == (3, 12, 12, 3)


def test_floats_are_quantised_as_saving_them_would(tmp_path):
    images = pictures(4, 12)
    rng = np.random.default_rng(0)
    noisy = images / 127.5 - 1 + rng.uniform(-0.4, 0.4, images.shape) / 127.5
    np.save(tmp_path / "x.npy", noisy.astype(np.float32))
    with pytest.raises(InputError, match="float32 images; say what is black"):
        open_images(tmp_path / "x.npy")
    source = open_images(tmp_path / "x.npy", (-1, 1))
    np.testing.assert_array_equal(all_pixels(source), images)
    with pytest.raises(InputError, match="outside of --float-range 0 1"):
        all_pixels(open_images(tmp_path / "x.npy", (0, 1)))


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
            all_pixels(open_images(tmp_path / name))


def test_an_array_shorter_than_its_header_is_found_at_once(tmp_path):
    np.save(tmp_path / "x.npy", pictures(20, 16))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-1])
    with pytest.raises(InputError, match="should hold 20 images, 19 are there"):
        ArraySource(tmp_path / "x.npy")


@pytest.mark.parametrize("float_range", [("nan", 1), (0, "inf"), ("-inf", 0), (1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_no_range(tmp_path, float_range, dtype):
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), dtype))
    with pytest.raises(InputError, match="two different finite numbers"):
        open_images(tmp_path / "x.npy", tuple(map(float, float_range)))
