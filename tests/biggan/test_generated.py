"""A BigGAN checkpoint that is sampled while it is scored."""

import json

import numpy as np
import pytest
import torch

from biggan import checkpoint
from biggan.config import from_dict
from biggan.generated import CheckpointImages
from biggan.generator import Generator
from biggan.sampling import load_generator, sample_uint8
from evonorm_plugins.errors import InputError
from evonorm_plugins.training.config import to_dict
from tests.metrics.conftest import pictures, save_pngs


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """``{norm: path}`` of generators of three classes, untrained."""
    paths = {}
    for norm in ("EvoNormS0", "EvoNormB0"):
        torch.manual_seed(0)
        config = from_dict(
            {"resolution": 32, "channels": 8, "channel_multipliers": [2, 2, 1, 1], "depth": 1,
             "attention": [16], "z_size": 8, "embedding_size": 8, "num_classes": 3, "norm": norm}
        )  # fmt: skip
        generators = [Generator(config).state_dict() for _ in range(2)]
        path = tmp_path_factory.mktemp(norm) / "checkpoint.pt"
        state = {"config": to_dict(config), "classes": ["a", "b", "c"], "step": 7}
        checkpoint.save(state | dict(zip(("ema", "generator"), generators, strict=True)), path)
        paths[norm] = path
    return paths


def images_of(source, size=8, **options):
    return torch.cat([images for _, images in source.batches(size, **options)])


def test_images_are_those_that_sampling_would_save(checkpoints):
    source = CheckpointImages(checkpoints["EvoNormS0"], 20, seed=3, truncation=0.7)
    generator, _ = load_generator(checkpoints["EvoNormS0"])
    # Of the same batches: the sums of others round differently.
    batches = sample_uint8(generator, 20, seed=3, truncation=0.7, batch_size=8)
    expected = torch.cat(list(batches))
    assert torch.equal(images_of(source, 8), expected)
    assert expected.dtype == torch.uint8
    assert source.mode == "no batch statistics"
    assert source.describe()["norm"] == "EvoNormS0"
    other = CheckpointImages(checkpoints["EvoNormS0"], 20, seed=3, ema=False)
    assert not torch.equal(images_of(other), expected)


def test_processes_make_the_images_of_one(checkpoints):
    source = CheckpointImages(checkpoints["EvoNormS0"], 21)
    whole = images_of(source, 4)
    for process in range(2):
        for indices, images in source.batches(4, process=process, processes=2):
            assert torch.equal(images, whole[indices])


def test_standing_statistics(checkpoints):
    path = checkpoints["EvoNormB0"]
    sources = {passes: CheckpointImages(path, 8, standing_statistics=passes) for passes in (0, 5)}
    assert sources[0].mode == "moving statistics"
    assert sources[5].mode == "standing statistics over 5 passes"
    assert CheckpointImages(path, 8).mode == "standing statistics over 100 passes"
    assert not torch.equal(images_of(sources[0]), images_of(sources[5]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": -1.0}, "truncation"),
        ({"classes": [3]}, "class 3 does not exist"),
        ({"n": 0}, "n=0"),
    ],
)
def test_options_are_checked_before_any_work(checkpoints, options, message):
    with pytest.raises(InputError, match=message):
        CheckpointImages(checkpoints["EvoNormS0"], **{"n": 4, **options})


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"cannot read checkpoint .*x\.pt \(3 bytes\)"):
        CheckpointImages(tmp_path / "x.pt", 4)


def test_command_line_over_seeds(checkpoints, evaluate, quick_extractor, tmp_path):
    real = save_pngs(pictures(60, 32), tmp_path / "real")
    status, out, err = evaluate(
        *("gan", "--checkpoint", checkpoints["EvoNormB0"], "--real", real, "--seeds", 0, 1, 2),
        *("--n", 60, "--standing-statistics", 2, "--truncation", 0.9, "--quiet", "--json"),
        *("--feature-extractor", quick_extractor, "--grid", tmp_path / "grid.png"),
    )
    assert status == 0, err
    record = json.loads(out)
    assert [run["sampling_seed"] for run in record["runs"]] == [0, 1, 2]
    key = next(k for k in record["scores"] if k.startswith("fid"))
    values = [run["scores"][key] for run in record["runs"]]
    assert len(set(values)) == 3
    assert record["scores"][key] == np.median(values)
    assert record["best"][key] == min(values)
    protocol = record["protocol"]
    assert protocol["ema"] is True
    assert protocol["truncation"] == 0.9
    assert protocol["mode"] == "standing statistics over 2 passes"
    assert protocol["classes"] == "uniform"
    assert record["name"] == "EvoNormB0"
    assert record["input"]["fake"]["training_seed"] == 0
    assert (tmp_path / "grid.png").stat().st_size > 1000
    # The same images, saved and read again.
    generator, _ = load_generator(checkpoints["EvoNormB0"])
    images = torch.cat(
        list(sample_uint8(generator, 60, seed=1, truncation=0.9, standing_statistics=2))
    )
    np.save(tmp_path / "saved.npy", images.numpy())
    status, out, _ = evaluate(
        *("gan", "--fake", tmp_path / "saved.npy", "--real", real, "--quiet", "--json"),
        *("--feature-extractor", quick_extractor),
    )
    assert json.loads(out)["scores"][key] == pytest.approx(values[1], rel=1e-9)


def test_seeds_that_were_scored_are_kept_when_a_later_one_fails(
    checkpoints, evaluate, quick_extractor, tmp_path, monkeypatch
):
    def fail_later(generator, *args, seed, **options):
        if seed == 2:
            raise RuntimeError("can't allocate memory")
        return sample_uint8(generator, *args, seed=seed, **options)

    monkeypatch.setattr("biggan.generated.sample_uint8", fail_later)
    arguments = ["--checkpoint", checkpoints["EvoNormS0"], "--n", 12, "--seeds", 0, 1, 2]
    arguments += ["--splits", 2, "--feature-extractor", quick_extractor, "--device", "cpu"]
    status, out, err = evaluate("gan", *arguments, "--quiet", "--out", tmp_path / "x.json")
    assert status == 1
    assert "not enough memory" in err
    assert "seed 1" in out
    record = json.loads((tmp_path / "x.json").read_text())
    assert [run["sampling_seed"] for run in record["runs"]] == [0, 1]
    assert record["warnings"][-1] == "ended before all scores of seed 2 were computed"
    status, out, err = evaluate("table", tmp_path / "x.json")
    assert status == 0, err
