"""Images and classes from every kind of source, and what is said of bad ones."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from biggan.config import from_dict
from biggan.data import TrainingData
from evonorm_plugins.classification import config as classification
from evonorm_plugins.classification.data import open_data
from evonorm_plugins.data.cifar10 import Cifar10Source
from evonorm_plugins.data.open import open_images, open_source
from evonorm_plugins.errors import BrokenImageError, DataError
from evonorm_plugins.metrics.data import ImageSet
from tests.biggan.pictures import picture
from tests.data.conftest import KINDS, encoded, write_tar, write_zip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_source_gives_the_same_images(kind, workers, every_kind):
    folder, arrays = every_kind
    source = open_source(str(folder / kind))
    assert source.classes == ["0", "1"]
    assert len(source.labels) == 6
    config = from_dict({"resolution": 32, "workers": workers, "flip": False})
    batches = iter(TrainingData(source, config, position=0, batch=6))
    images, labels = next(batches)
    expected = {a.transpose(2, 0, 1).tobytes(): k // 3 for k, a in enumerate(arrays)}
    found = {image.numpy().tobytes(): int(k) for image, k in zip(images, labels, strict=True)}
    assert found == expected
    again, _ = next(batches)  # the second epoch: the same images in another order
    assert {a.numpy().tobytes() for a in again} == set(expected)
    # As worker processes that are not forked get it, after files were opened here.
    copy = pickle.loads(pickle.dumps(source))
    assert copy.image(5).tobytes() == source.image(5).tobytes()


def ramp(top, dtype):
    return np.linspace(0, top, 32 * 32).round().astype(dtype).reshape(32, 32)


# Files of one image each, and the grey that every reader makes of it; None where it is refused.
ONE_RULE = {
    "8 bits": (encoded(ramp(255, np.uint8)), ramp(255, np.uint8)),
    "16 bits": (encoded(ramp(65535, np.uint16)), ramp(65535, np.uint16) >> 8),
    "16 bits, dark": (encoded(ramp(255, np.uint16)), ramp(255, np.uint16) >> 8),
    "transparent": (encoded(Image.new("LA", (32, 32), (77, 0))), np.full((32, 32), 77)),
    "palette": (encoded(Image.fromarray(ramp(255, np.uint8)).convert("P")), ramp(255, np.uint8)),
    "32 bits": (encoded(ramp(70_000, np.int32), "TIFF"), None),
    "float": (encoded(ramp(1, np.float32), "TIFF"), None),
}


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
@pytest.mark.parametrize("name", ONE_RULE)
def test_every_reader_reads_a_file_by_one_rule(name, container, tmp_path):
    """In memory and from files for a classifier, for a GAN, and to be scored."""
    data, grey = ONE_RULE[name]
    kind = "tif" if data[:2] == b"II" else "png"
    path = tmp_path / "set"
    if container == "folder":
        (path / "0").mkdir(parents=True)
        (path / f"0/x.{kind}").write_bytes(data)
    elif container == "zip":
        path = write_zip(tmp_path / "set.zip", {f"0/x.{kind}": data})
    else:
        path = write_tar(tmp_path / "set.tar", [(f"x.{kind}", data), ("x.cls", b"0")])
    values = {"data": str(path), "val_data": str(path), "augment": "none", "batch_size": 1}
    values |= {"workers": 0, "resolution": 32, "val_resize": 32}

    def classifier(reader):
        config = classification.from_dict({**values, "reader": reader})
        return next(iter(open_data(config).val_batches()))[0]

    def gan(channels):
        config = {"resolution": 32, "workers": 0, "flip": False, "image_channels": channels}
        source = open_source(str(path))
        config = from_dict({**config, "max_corrupt": 0})
        return next(iter(TrainingData(source, config, position=0, batch=1)))[0]

    readers = [lambda: classifier("memory"), lambda: classifier("files"), lambda: gan(1)]
    readers.append(lambda: gan(3))
    if container != "tar":  # images without classes, which come in folders, zip files and arrays
        readers.append(lambda: next(iter(ImageSet(path).batches(1)))[1])
    for read in readers:
        if grey is None:
            with pytest.raises(DataError, match=r"x\.tif .*of unknown range; save it with 8 bits"):
                read()
        else:
            images = read()
            np.testing.assert_array_equal(images[0], np.stack([grey] * images.shape[1]))


def test_index_of_shards_is_kept(every_kind, monkeypatch):
    folder, _ = every_kind
    first = open_source(str(folder / "shard-*.tar"))
    monkeypatch.setattr("evonorm_plugins.data.tar._read_shard", None)
    second = open_source(str(folder / "shard-*.tar"))
    assert [second.name(i) for i in range(6)] == [first.name(i) for i in range(6)]
    assert second.read(5) == first.read(5)
    assert list(first.blocks) == [0, 3]


def test_folders_of_shards_and_of_classes(every_kind):
    """Archives that were unpacked often still lie beside what was in them."""
    folder, _ = every_kind
    (folder / "shards").mkdir()
    for k in range(2):
        os.rename(folder / f"shard-{k}.tar", folder / f"shards/{k}.tar")
    assert len(open_source(str(folder / "shards"))) == 6
    os.rename(folder / "shards/0.tar", folder / "folder/0.tar")
    assert open_source(str(folder / "folder")).name(0) == str(folder / "folder/0/deeper/0.PNG")


def test_checksum_of_a_zip_member_is_checked(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"0/a.png": picture(0, 0)})
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="checksum"):
        open_source(str(path)).read(0)
    with pytest.raises(BrokenImageError, match=r"a\.zip:0/a\.png cannot be read: .*checksum"):
        open_source(str(path)).image(0)


def test_a_file_cut_off_while_it_is_read_is_named(every_kind):
    folder, _ = every_kind
    for kind in ("deflated.zip", "bzip2.zip", "shard-*.tar", "first.hdf5"):
        source = open_source(str(folder / kind))
        for path in source.files():
            os.truncate(path, 20)
        with pytest.raises(BrokenImageError, match=kind.partition("*")[0]):
            source.image(4)


def test_animations_are_left_out_and_counted(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    Image.new("P", (8, 8)).save(tmp_path / "a/progress.gif")
    Image.new("P", (8, 8)).save(tmp_path / "a/x.png")
    assert len(open_source(str(tmp_path))) == len(open_images(tmp_path)) == 1
    assert capsys.readouterr().err.count("1 .gif files are left out") == 2


def test_bad_sources(tmp_path):
    cases = {
        "none": "there is no such folder or file",
        "empty": "has no class folders; images belong in",
        "one_empty": "1 of 2 classes have no images: b",
        "text.txt": "neither a folder nor",
        "bad.zip": "cannot be read",
        "flat.zip": "image a.png is in a class folder",
        "bad.tar": "cannot be read as an uncompressed tar",
        "nocls.tar": "a.png? has no .cls file|/a has no .cls file",
        "gap.tar": "1 of 3 classes have no images: 1",
        "high.tar": "label 99999999 of 2 images",
        "bad.hdf5": "cannot be read",
        "labels.hdf5": r"1 images and labels float64 \(1,\), which must be as many whole numbers",
    }
    (tmp_path / "empty").mkdir()
    for name in "ab":
        (tmp_path / "one_empty" / name).mkdir(parents=True)
    (tmp_path / "one_empty/a/x.png").write_bytes(picture(0, 0))
    for name in ("text.txt", "bad.zip", "bad.tar", "bad.hdf5"):
        (tmp_path / name).write_text("neither")
    write_zip(tmp_path / "flat.zip", {"a.png": picture(0, 0)})
    write_tar(tmp_path / "nocls.tar", [("a.png", picture(0, 0))])
    for name, last in (("gap.tar", b"2"), ("high.tar", b"99999999")):
        samples = [("a.png", picture(0, 0)), ("a.cls", b"0")]
        write_tar(tmp_path / name, [*samples, ("b.png", picture(0, 0)), ("b.cls", last)])
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "labels.hdf5", "w") as f:
        f["imgs"], f["labels"] = np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1)
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / name))


def test_digits():
    pytest.importorskip("sklearn")
    source = open_source("digits", resolution=32)
    assert source.classes == list("0123456789")
    assert len(source.labels) == 1797
    image = source.read(0)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert np.ptp(image) > 200
    assert torch.from_numpy(image).float().std() > 10


def write_cifar10(folder, labels=10):
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        values = {
            "data": random.integers(0, 256, (4, 3072), dtype=np.uint8),
            "labels": random.integers(0, labels, 4).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(values))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def test_torchvisions_cifar10(tmp_path):
    """The files that torchvision reads, made on the spot, give torchvision's images."""
    folder = tmp_path / CIFAR10.base_folder
    write_cifar10(folder)
    CIFAR10._check_integrity = lambda self: True
    monkey, CIFAR10._load_meta = CIFAR10._load_meta, lambda self: None
    try:
        theirs = CIFAR10(tmp_path, train=True)
    finally:
        CIFAR10._load_meta = monkey
        del CIFAR10._check_integrity
    options = {"data": str(tmp_path), "val_data": str(folder), "batch_size": 20, "augment": "none"}
    ours = open_data(classification.from_dict(options))
    assert ours.classes == list("abcdefghij")
    assert ours.val_length == 4
    assert np.array_equal(ours.train.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.train.labels.tolist() == theirs.targets
    assert np.array_equal(open_source(str(tmp_path)).read(5), theirs.data[5])


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    write_cifar10(tmp_path / "cifar")
    (tmp_path / "cifar/batches.meta").write_bytes(pickle.dumps(zipfile.ZipFile))
    with pytest.raises(DataError, match=r"batches\.meta cannot be read.*zipfile\.ZipFile"):
        Cifar10Source(tmp_path / "cifar", train=True)


def test_damaged_cifar10(tmp_path):
    write_cifar10(tmp_path / "high", labels=99)
    with pytest.raises(DataError, match="a label is not one of 10 classes"):
        Cifar10Source(tmp_path / "high", train=True)
    write_cifar10(tmp_path / "damaged")
    batch, random = tmp_path / "damaged/test_batch", np.random.default_rng(0)
    content, messages = batch.read_bytes(), []
    for k in range(200):
        damaged = bytearray(content)
        damaged[random.integers(len(damaged)) if k % 2 else random.integers(200)] ^= 1 << k % 8
        batch.write_bytes(damaged if k % 3 else damaged[: random.integers(len(damaged))])
        try:
            assert len(Cifar10Source(tmp_path / "damaged", train=False)) == 4
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith(f"{tmp_path}/damaged") for message in messages)
