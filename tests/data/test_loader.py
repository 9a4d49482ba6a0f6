"""Samples and batches: what replaces a damaged image, what errors say, what does not fit."""

import types

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_plugins.data.decode import to_tensor
from evonorm_plugins.data.in_memory import check_fits, decoded, free_memory
from evonorm_plugins.data.loader import Loader, Samples
from evonorm_plugins.data.open import open_images
from evonorm_plugins.errors import DataError


@pytest.fixture
def numbered(tmp_path):
    """``numbered(damaged)``: ten images whose pixels are their numbers."""

    def numbered(damaged=(), size=4):
        for k in range(10):
            Image.new("RGB", (size, size), (k, k, k)).save(tmp_path / f"{k}.png")
            if k in damaged:
                (tmp_path / f"{k}.png").write_bytes(b"no image")
        return open_images(tmp_path)

    return numbered


def config(workers=0, max_corrupt=0):
    return types.SimpleNamespace(workers=workers, prefetch=2, max_corrupt=max_corrupt)


def make(image, _):
    return to_tensor(image)


def numbers(source, workers=0, max_corrupt=9, **how):
    samples = Samples(source, make, replacements=max_corrupt, **how)
    keys = [[(k, None) for k in range(len(samples))]]
    loader = Loader(samples, keys, config(workers, max_corrupt))
    ((images, _),) = loader
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_replaced_by_a_chosen_one(numbered, capfd, workers):
    """The next image of the source may be one that was held out."""
    source = numbered(damaged=(2, 3, 8))
    assert numbers(source, workers, chosen=torch.tensor([0, 2, 5, 8])) == [0, 5, 5, 0]
    assert numbers(source, chosen=[3, 2, 4]) == [4, 4, 4]
    err = capfd.readouterr().err  # each is named once, by every loader that met it
    assert [err.count(f"/{k}.png (8 bytes)") for k in (2, 3, 8)] == [2, 1, 1]


def test_limits_of_damage(numbered):
    source = numbered(damaged=range(1, 10))
    with pytest.raises(DataError, match=r"more than max_corrupt=8 damaged .*9\.png.*max_corrupt=8"):
        numbers(source, max_corrupt=8)
    with pytest.raises(DataError, match=r"all images are damaged, the last: .*4\.png"):
        numbers(source, chosen=[4, 7])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_image_and_has_no_traceback(numbered, workers):
    def picky(image, _):
        raise DataError("is of no use")

    samples = Samples(numbered(), picky)
    loader = Loader(samples, [[(3, None)]], config(workers))
    with pytest.raises(DataError, match=r"3\.png is of no use$"):
        list(loader)


def test_a_bomb_among_images_is_named(numbered, monkeypatch):
    source = numbered(size=32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"0\.png .*decompression bomb"):
        numbers(source, max_corrupt=0)
    with pytest.raises(DataError, match=r"0\.png .*decompression bomb"):
        decoded(source)


def test_sizes_that_do_not_fit_in_memory(numbered, monkeypatch):
    with pytest.raises(DataError, match=r"all take 931\.3 GiB \(1000 x 1000000000 bytes\), but .*"):
        check_fits("all", (1000, 10**9), "less")
    check_fits("all", (free_memory() // 2,), "less")
    assert 2**20 < free_memory() < 2**50
    monkeypatch.setattr("evonorm_plugins.data.in_memory.free_memory", lambda: 400)
    monkeypatch.setattr(np, "empty", None)  # nothing is allocated
    with pytest.raises(
        DataError, match=r"10 images like .*0\.png.*\(10 x 3 x 4 x 4 b.*reader=files"
    ):
        decoded(numbered())
