"""Images and classes from every kind of source, their order, and what is said of bad ones."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from biggan.config import from_dict
from biggan.images import TooSmallError, decode
from biggan.loader import RankBatches, Sequence, TrainingData, check_source
from biggan.sources import open_source
from evonorm_plugins.errors import DataError
from tests.biggan.pictures import picture


def write_tar(path, samples):
    with tarfile.open(path, "w") as shard:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The same six images of two classes in every form."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [(label, number, picture(label, number)) for label in range(2) for number in range(3)]
    for label, number, data in images:
        file = tmp_path / f"folder/{label}/deeper/{number}.PNG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (tmp_path / "folder/0/notes.txt").write_text("no image")
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", method) as archive:
            for label, number, data in images:
                archive.writestr(f"a/train/{label}/{number}.png", data)
            archive.writestr("__MACOSX/a/._0.png", b"")
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


KINDS = ["folder", "stored.zip", "deflated.zip", "shard-*.tar", "first.hdf5", "last.hdf5"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_source_gives_the_same_images(kind, workers, sources):
    folder, arrays = sources
    source = open_source(str(folder / kind), 32)
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


def test_index_of_shards_is_kept(sources, monkeypatch):
    folder, _ = sources
    first = open_source(str(folder / "shard-*.tar"), 32)
    monkeypatch.setattr("biggan.shards._read_shard", None)
    second = open_source(str(folder / "shard-*.tar"), 32)
    assert [second.name(i) for i in range(6)] == [first.name(i) for i in range(6)]
    assert second.read(5) == first.read(5)
    assert list(first.blocks) == [0, 3]


def test_sequence_is_every_image_once_an_epoch():
    sequence = Sequence(10, 3, flip=True)
    epochs = [[sequence[10 * e + k] for k in range(10)] for e in range(3)]
    for epoch in epochs:
        assert sorted(i for i, _ in epoch) == list(range(10))
    assert epochs[0] != epochs[1]
    assert len({flipped for epoch in epochs for _, flipped in epoch}) == 2
    assert [Sequence(10, 3, flip=True)[k] for k in range(10)] == epochs[0]
    assert [Sequence(10, 4, flip=True)[k] for k in range(10)] != epochs[0]


def test_sequence_of_shards_stays_among_a_few():
    blocks = np.arange(0, 100, 10)
    sequence = Sequence(100, 0, flip=False, blocks=blocks, shuffle_shards=2)
    order = [sequence[k][0] for k in range(100)]
    assert sorted(order) == list(range(100))
    for start in range(0, 100, 20):
        assert len({i // 10 for i in order[start : start + 20]}) == 2
    assert order[:20] != sorted(order[:20])


def test_ranks_share_the_sequence():
    sequence = Sequence(100, 0, flip=True)
    one = iter(RankBatches(sequence, 12, 6, 0, 1))
    two = [iter(RankBatches(sequence, 12, 3, rank, 2)) for rank in range(2)]
    for _ in range(20):
        assert next(one) == next(two[0]) + next(two[1])


def encoded(array, kind="png"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def test_middle_square_is_averaged():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 100  # the middle square
    image[:32, 32:64] = 200
    result = decode(encoded(image), 32, 3, enlarge=False)
    assert result.shape == (3, 32, 32)
    assert set(result.unique().tolist()) == {100, 200}
    assert (result[:, :16, :16] == 200).all()
    checkers = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    assert (decode(encoded(checkers), 32, 1, enlarge=False) == 100).all()


def test_kinds_of_pixels():
    grey16 = np.full((32, 32), 51400, np.uint16)  # 200 * 257
    assert (decode(encoded(grey16), 32, 3, enlarge=False) == 200).all()
    palette = Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).convert("P")
    file = io.BytesIO()
    palette.save(file, "gif")
    assert decode(file.getvalue(), 32, 3, enlarge=False).shape == (3, 32, 32)
    with pytest.raises(TooSmallError, match="31x40"):
        decode(encoded(np.zeros((40, 31), np.uint8)), 32, 3, enlarge=False)
    assert decode(encoded(np.zeros((8, 9), np.uint8)), 32, 1, enlarge=True).shape == (1, 32, 32)


def test_damaged_images_are_named_and_replaced(tmp_path, capsys):
    for label in range(2):
        for number in range(4):
            file = tmp_path / f"images/{label}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            data = picture(label, number)
            file.write_bytes(data[: len(data) // 2] if (label, number) == (1, 2) else data)
    source = open_source(str(tmp_path / "images"), 32)
    config = from_dict({"resolution": 32, "workers": 0, "max_corrupt": 1})
    batches = iter(TrainingData(source, config, position=0, batch=8))
    for _ in range(3):
        images, _ = next(batches)
        assert images.shape == (8, 3, 32, 32)
    assert capsys.readouterr().err.count("damaged image 1 of at most 1: ") == 1
    config.max_corrupt = 0
    with pytest.raises(DataError, match=r"more than max_corrupt=0 damaged images.*1/2.png"):
        next(iter(TrainingData(source, config, position=0, batch=8)))


def test_checksum_of_a_zip_member_is_checked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0/a.png", picture(0, 0))
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="checksum"):
        open_source(str(path), 32).read(0)


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
    }
    (tmp_path / "empty").mkdir()
    for name in "ab":
        (tmp_path / "one_empty" / name).mkdir(parents=True)
    (tmp_path / "one_empty/a/x.png").write_bytes(picture(0, 0))
    for name in ("text.txt", "bad.zip", "bad.tar"):
        (tmp_path / name).write_text("neither")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("a.png", picture(0, 0))
    write_tar(tmp_path / "nocls.tar", [("a.png", picture(0, 0))])
    samples = [("a.png", picture(0, 0)), ("a.cls", b"0"), ("b.png", picture(0, 0)), ("b.cls", b"2")]
    write_tar(tmp_path / "gap.tar", samples)
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / name), 32)


def test_checks_before_training(image_zip):
    source = open_source(str(image_zip), 32)
    check_source(source, from_dict({"resolution": 32, "num_classes": 3}))
    with pytest.raises(DataError, match="num_classes=4, but the data has 3 classes"):
        check_source(source, from_dict({"resolution": 32, "num_classes": 4}))
    with pytest.raises(DataError, match=r"is 32x32, smaller than resolution=64; small_images=enl"):
        check_source(source, from_dict({"resolution": 64}))
    check_source(source, from_dict({"resolution": 64, "small_images": "enlarge"}))


def test_digits():
    pytest.importorskip("sklearn")
    source = open_source("digits", 32)
    assert source.classes == list("0123456789")
    assert len(source.labels) == 1797
    image = source.read(0)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert np.ptp(image) > 200
    assert torch.from_numpy(image).float().std() > 10
