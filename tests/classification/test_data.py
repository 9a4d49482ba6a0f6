"""Images in memory and from files."""

import zipfile

import numpy as np
import pytest
import torch

from evonorm_plugins.classification.data import MemoryTrainingData, open_data
from evonorm_plugins.data.augment import centre_crop, random_affine, warp
from evonorm_plugins.errors import DataError
from tests.classification.conftest import png


def _take(data, count):
    batches = iter(data.train.batches(0))
    return [next(batches) for _ in range(count)]


def test_crops_by_hand(config):
    """Every crop is a window of the padded image, flipped or not; all windows turn up."""
    image = torch.arange(1, 28, dtype=torch.uint8).view(1, 3, 3, 3)
    data = MemoryTrainingData(
        image.expand(500, 3, 3, 3),
        torch.zeros(500, dtype=torch.long),
        2,
        config(batch_size=500, padding=1),
    )
    padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1))
    windows = [padded[:, t : t + 2, x : x + 2] for t in range(4) for x in range(4)]
    expected = {tuple(w.flatten().tolist()) for w in windows}
    expected |= {tuple(w.flip(2).flatten().tolist()) for w in windows}
    crops, _ = next(data.batches(0))
    assert {tuple(c.flatten().tolist()) for c in crops} == expected


def test_no_augmentation_is_the_middle(config):
    image = torch.arange(3 * 16, dtype=torch.uint8).view(1, 3, 4, 4)
    values = {"augment": "none", "batch_size": 1}
    data = MemoryTrainingData(image, torch.zeros(1, dtype=torch.long), 2, config(**values))
    crops, _ = next(data.batches(0))
    assert torch.equal(crops, image[:, :, 1:3, 1:3])
    assert torch.equal(centre_crop(image, 2), image[:, :, 1:3, 1:3])


def test_affine_maps_by_hand():
    draw = torch.Generator().manual_seed(0)
    still = {"rotation": 0, "zoom": 0, "shift": 0}
    image = torch.arange(16.0).view(1, 1, 4, 4)
    (same,) = random_affine(1, draw, **still, flip=False)
    torch.testing.assert_close(warp(image, same[None]), image)
    affine = random_affine(400, draw, **still)
    mirrored = affine[:, 0, 0] < 0
    assert 150 < mirrored.sum() < 250
    flipped = warp(image.expand(400, 1, 4, 4), affine)[mirrored]
    torch.testing.assert_close(flipped[0], image[0].flip(2))
    # Shifted by half of the width: what is not there is the nearest pixel.
    shifted = torch.tensor([[[1.0, 0, 1], [0, 1, 0]]])
    row = warp(image, shifted)[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([2.0, 3, 3, 3]))
    # Zoom and rotation are of every axis and image.
    affine = random_affine(400, draw, rotation=18, zoom=0.15, shift=0.2, flip=False)
    lengths = affine[:, :, :2].square().sum(1).sqrt()
    assert 0.85 <= lengths.min() < 0.86
    assert 1.14 < lengths.max() <= 1.15
    assert 17 < torch.atan2(affine[:, 1, 0], affine[:, 0, 0]).rad2deg().max() < 18.001
    assert 0.38 < affine[:, :, 2].abs().max() <= 0.4


def test_affine_augmentation_is_that_of_the_update(config):
    options = {"augment": "affine", "batch_size": 16}
    data = open_data(config(**options))
    images, labels = _take(data, 2)[1]
    again, _ = next(data.train.batches(1))
    assert torch.equal(images, again)
    plain, same = _take(open_data(config(**options, rotation=0, zoom=0, shift=0, flip=False)), 2)[1]
    none, _ = _take(open_data(config(augment="none", batch_size=16)), 2)[1]
    assert torch.equal(plain, none)
    assert torch.equal(labels, same)
    assert (images != plain).flatten(1).any(1).all()


@pytest.mark.parametrize("reader", ["memory", "files"])
def test_ranks_and_accumulations_divide_the_same_update(config, reader):
    options = {"reader": reader, "resolution": 12}
    whole = open_data(config(**options, batch_size=16))
    images, labels = _take(whole, 2)[1]  # the second update
    parts = config(**options, batch_size=4, accumulations=2)
    ranks = [_take(open_data(parts, rank, 2), 4)[2:] for rank in range(2)]
    pieces = [ranks[r][k] for k in range(2) for r in range(2)]
    assert torch.equal(torch.cat([p[0] for p in pieces]), images)
    assert torch.equal(torch.cat([p[1] for p in pieces]), labels)
    # An epoch has every image once: 32 images are two updates of 16.
    first = _take(open_data(config(reader=reader, batch_size=32, augment="none")), 1)[0]
    assert sorted(first[1].tolist()) == [0] * 16 + [1] * 16


@pytest.mark.parametrize("reader", ["memory", "files"])
def test_goes_on_anywhere(config, reader):
    data = open_data(config(reader=reader, resolution=12))
    batches = _take(data, 6)
    later = next(iter(data.train.batches(5)))
    assert torch.equal(later[0], batches[5][0])
    assert torch.equal(later[1], batches[5][1])
    assert not torch.equal(batches[0][0], batches[4][0])  # another epoch


def test_worker_processes_change_nothing(config):
    options = {"reader": "files", "resolution": 12, "augment": "randaugment"}
    state = torch.get_rng_state()
    alone = _take(open_data(config(**options)), 3)
    assert torch.equal(torch.get_rng_state(), state)
    workers = _take(open_data(config(**options, workers=2)), 3)
    for (a, _), (b, _) in zip(alone, workers, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reader", ["memory", "files"])
def test_validation_takes_every_image_once(config, reader):
    options = {"reader": reader, "val_batch_size": 3, "resolution": 16, "val_resize": 16}
    everything = [open_data(config(**options), rank, 3).val_batches() for rank in range(3)]
    labels = torch.cat([y for rank in everything for _, y in rank])
    assert sorted(labels.tolist()) == [0] * 8 + [1] * 8
    images = [x for x, _ in open_data(config(**options)).val_batches()]
    assert {x.shape[1:] for x in images} == {(3, 16, 16)}
    bright = torch.cat(images).float().mean((1, 2, 3)) > 127
    assert bright.tolist() == [True] * 8 + [False] * 8


def test_moments_are_those_of_the_images(config):
    data = open_data(config(batch_size=32, augment="none"))
    images = _take(data, 1)[0][0].double() / 255
    assert data.mean == pytest.approx(images.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(images.std((0, 2, 3), correction=0).tolist())


def test_a_choice_of_images_is_fixed(config):
    some = [open_data(config(max_train_images=16, max_val_images=5)) for _ in range(2)]
    assert len(some[0].train) == 16
    assert some[0].val_length == 5
    assert torch.equal(some[0].train.images, some[1].train.images)


@pytest.mark.parametrize("reader", ["memory", "files"])
def test_images_held_out(config, make_zip, reader):
    """As large a share of every class, once each, and never trained on."""
    path = make_zip("some.zip", per_class=9, classes="abc")
    options = {"data": path, "val_data": "", "reader": reader, "augment": "none", "batch_size": 21}
    options |= {"resolution": 16, "val_resize": 18}  # files: as in training, round(16 / CROP_SHARE)

    def split(seed, holdout=6):
        data = open_data(config(**options, seed=seed, holdout=holdout))
        images, labels = _take(data, 1)[0]
        held = [(x, y) for xs, ys in data.val_batches() for x, y in zip(xs, ys, strict=True)]
        assert data.val_length == holdout
        return images, labels, torch.stack([x for x, _ in held]), torch.stack([y for _, y in held])

    images, labels, held, held_labels = split(0)
    assert torch.bincount(held_labels).tolist() == [2, 2, 2]
    assert torch.bincount(labels).tolist() == [7, 7, 7]
    assert len(torch.cat([images, held]).flatten(1).unique(dim=0)) == 27
    assert torch.equal(split(0)[2], held)
    assert not torch.equal(split(1)[2], held)
    assert sorted(torch.bincount(split(0, 5)[3]).tolist()) == [1, 2, 2]


@pytest.mark.parametrize(("holdout", "images"), [("10%", 3), ("22.3%", 6), ("80 %", 22)])
def test_a_share_held_out(config, make_zip, holdout, images):
    """The images that the same number would hold out: 27 there are, as many of each class."""
    path = make_zip("some.zip", per_class=9, classes="abc")
    options = {"data": path, "val_data": "", "batch_size": 5}
    share, number = (open_data(config(**options, holdout=h)) for h in (holdout, images))
    assert share.val_length == images
    assert len(share.train) == 27 - images
    for (x, y), (same, labels) in zip(share.val_batches(), number.val_batches(), strict=True):
        assert torch.equal(x, same)
        assert torch.equal(y, labels)


def test_decoded_once(config, cache, monkeypatch):
    options = config()
    before = open_data(options).train.images
    assert len(list(cache.rglob("*.npz"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr("evonorm_plugins.data.zip.ZipSource.read", _read_first_alone)
        assert torch.equal(open_data(options).train.images, before)
    for path in cache.rglob("*.npz"):  # cut off
        path.write_bytes(path.read_bytes()[:200])
    assert torch.equal(open_data(options).train.images, before)


def _read_first_alone(self, i):
    """The first image says whether all are small; none is read after it."""
    assert i == 0
    return png(np.zeros((16, 16, 3), np.uint8))


def test_changed_data_is_decoded_anew(config, make_zip):
    before = open_data(config()).train.images
    values = config()
    make_zip("train.zip", seed=5)
    assert not torch.equal(open_data(values).train.images, before)


def _zip_of(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


GOOD = png(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.png": GOOD, "b/": b""}, r"1 of 2 classes have no images: b"),
        ({"a/1.png": GOOD, "b/2.png": b"no image"}, r"b/2\.png \(8 bytes\) cannot be read"),
        ({"a/1.png": b"no image", "b/2.png": GOOD}, r"a/1\.png \(8 bytes\) cannot be read"),
        ({"a/1.png": GOOD, "b/2.png": png(np.zeros((8, 9, 3), np.uint8))}, r"b/2\.png is 9x8, .*"),
        ({"1.png": GOOD}, "images belong in CLASS"),
    ],
)
def test_bad_images(tmp_path, config, make_zip, files, message):
    val = make_zip("ab.zip", classes="ab")
    with pytest.raises(DataError, match=message):
        open_data(config(data=_zip_of(tmp_path / "bad.zip", files), batch_size=1, val_data=val))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ""}, "data=PATH"),
        ({"data": "nowhere.zip"}, "no such folder or file"),
        ({"data": __file__}, "neither a folder nor a .zip"),
        ({"val_data": "", "holdout": 32}, "holdout=32 leaves none of the 32 images"),
        ({"val_data": "", "holdout": "1%"}, "holdout=1% of the 32 images .* is none to validate"),
        ({"val_data": "", "holdout": 30}, "2 training images are fewer than one update"),
        ({"batch_size": 33}, "32 training images are fewer than one update"),
        ({"resolution": 40}, "resolution=40, but the images are 16x16"),
        ({"val_resolution": 40}, "val_resolution=40 is more"),
        ({"augment": "randaugment"}, "reader=files"),
        ({"augment": "affine", "reader": "files"}, "reader=memory"),
        ({"reader": "files", "val_resolution": 16, "val_resize": 8}, "val_resize=8 is less"),
    ],
)
def test_bad_options(config, values, message):
    with pytest.raises(DataError, match=message):
        open_data(config(**values))


def test_other_classes_to_validate_on(config, make_zip):
    val = make_zip("other.zip", classes=("bright", "blue"))
    with pytest.raises(DataError, match="different classes: blue, dark"):
        open_data(config(val_data=val))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_named_and_left_out(tmp_path, config, capfd, workers):
    path = _zip_of(
        tmp_path / "bad.zip", {"bright/1.png": GOOD, "dark/2.png": b"no", "dark/3.png": GOOD}
    )
    options = {"reader": "files", "resolution": 12, "batch_size": 3, "workers": workers}
    with pytest.raises(DataError, match=r"dark/2\.png.*max_corrupt=0"):
        _take(open_data(config(**options, data=path)), 1)
    capfd.readouterr()
    images, _ = _take(open_data(config(**options, data=path, max_corrupt=1)), 1)[0]
    assert images.shape == (3, 3, 12, 12)
    assert capfd.readouterr().err.count("dark/2.png") == 1


def test_a_damaged_image_is_not_replaced_by_one_held_out(tmp_path, config):
    """Nor one that is validated on by one that is trained on."""
    files = {
        f"{label}/{k}.png": png(np.full((16, 16, 3), 40 * k + 10 * (label == "b"), np.uint8))
        for label in "ab"
        for k in range(6)
    }
    for name in ("a/1.png", "a/4.png", "b/0.png", "b/3.png", "b/5.png"):
        files[name] = b"no image"
    path = _zip_of(tmp_path / "some.zip", files)
    values = {"data": path, "val_data": "", "reader": "files", "augment": "none", "batch_size": 6}
    values |= {"resolution": 16, "val_resize": 18, "max_corrupt": 5, "holdout": 6}
    for seed in range(5):
        data = open_data(config(**values, seed=seed))
        trained_on = torch.cat([images[:, 0, 0, 0] for images, _ in _take(data, 4)])
        held_out = torch.cat([images[:, 0, 0, 0] for images, _ in data.val_batches()])
        assert not set(trained_on.tolist()) & set(held_out.tolist())


def test_options_that_take_more_memory_than_there_is(config):
    values = {"reader": "files", "resolution": 16}
    for more in ({"resolution": 10**7}, {"val_resize": 10**7}, {"workers": 10**9}):
        with pytest.raises(DataError, match=r"take .* GiB .* of memory are free"):
            open_data(config(**{**values, **more}))
    with pytest.raises(DataError, match=r"the crops of a batch take .* GiB"):
        open_data(config(padding=10**7, resolution=10**7))
