"""The order of training images, what is made of them, and what is said of bad ones."""

import numpy as np
import pytest
from PIL import Image

from biggan.config import from_dict
from biggan.data import MiddleSquare, Sequence, TrainingData, check_source
from evonorm_plugins.data.loader import RankBatches
from evonorm_plugins.data.open import open_source
from evonorm_plugins.errors import DataError
from tests.biggan.pictures import picture


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


def test_middle_square_is_averaged():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 100  # the middle square
    image[:32, 32:64] = 200
    result = MiddleSquare(32)(Image.fromarray(image), False)
    assert result.shape == (3, 32, 32)
    assert set(result.unique().tolist()) == {100, 200}
    assert (result[:, :16, :16] == 200).all()
    assert (MiddleSquare(32)(Image.fromarray(image), True) == result.flip(2)).all()
    checkers = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    assert (MiddleSquare(32)(Image.fromarray(checkers), False) == 100).all()


def test_smaller_images_are_enlarged_or_refused():
    with pytest.raises(DataError, match="31x40"):
        MiddleSquare(32)(Image.new("RGB", (31, 40)), False)
    assert MiddleSquare(32, enlarge=True)(Image.new("L", (9, 8)), False).shape == (1, 32, 32)


def test_damaged_images_are_named_and_replaced(tmp_path, capsys):
    for label in range(2):
        for number in range(4):
            file = tmp_path / f"images/{label}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            data = picture(label, number)
            file.write_bytes(data[: len(data) // 2] if (label, number) == (1, 2) else data)
    source = open_source(str(tmp_path / "images"))
    config = from_dict({"resolution": 32, "workers": 0, "max_corrupt": 1})
    batches = iter(TrainingData(source, config, position=0, batch=8))
    for _ in range(3):
        images, _ = next(batches)
        assert images.shape == (8, 3, 32, 32)
    assert capsys.readouterr().err.count("damaged image 1 of at most 1: ") == 1
    config.max_corrupt = 0
    with pytest.raises(DataError, match=r"more than max_corrupt=0 damaged images.*1/2.png"):
        next(iter(TrainingData(source, config, position=0, batch=8)))


def test_checks_before_training(image_zip):
    source = open_source(str(image_zip))
    check_source(source, from_dict({"resolution": 32, "num_classes": 3}))
    with pytest.raises(DataError, match="num_classes=4, but the data has 3 classes"):
        check_source(source, from_dict({"resolution": 32, "num_classes": 4}))
    with pytest.raises(DataError, match=r"is 32x32, smaller than resolution=64; small_images=enl"):
        check_source(source, from_dict({"resolution": 64}))
    check_source(source, from_dict({"resolution": 64, "small_images": "enlarge"}))


def test_batches_larger_than_memory(image_zip):
    source, config = open_source(str(image_zip)), from_dict({"resolution": 32, "workers": 0})
    with pytest.raises(DataError, match=r"the batches of a rank .* take .* GiB .*of memory are fr"):
        TrainingData(source, config, position=0, batch=10**10)


def test_the_rate_of_few_images_takes_each_of_them_once(image_zip):
    """Besides the first batch, whose time holds the start of the workers."""
    source, config = open_source(str(image_zip)), from_dict({"resolution": 32, "workers": 0})
    data, read = TrainingData(source, config, position=0, batch=8), []
    data.batches = (read.append(1) or batch for batch in data.batches)
    assert data.rate(seconds=10) > 0
    assert len(read) == 1 + 24 / 8
