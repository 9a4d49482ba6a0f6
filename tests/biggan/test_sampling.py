"""Samples: what they depend on, standing statistics, files."""

import zipfile

import pytest
import torch

from biggan.generator import Generator, running_statistics_layers
from biggan.latents import draw_classes, draw_latents
from biggan.sampling import (
    grid,
    interpolate_uint8,
    load_generator,
    sample_uint8,
    with_standing_statistics,
)
from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.training.seeds import generator_of


def samples(generator, n, **options):
    return torch.cat(list(sample_uint8(generator, n, **options)))


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_batches_make_no_difference(norm, saved):
    generator, config = load_generator(saved(norm))
    assert (config.norm, generator.step, generator.classes[2]) == (norm, 7, "cow")
    one = samples(generator, 10, batch_size=10)
    three = samples(generator, 10, batch_size=3)
    assert one.shape == (10, 3, 32, 32)
    assert one.dtype == torch.uint8
    # A level apart where rounding of sums puts a value on the other side of a half.
    assert (one.int() - three.int()).abs().max() <= 1
    assert torch.equal(samples(generator, 10, batch_size=10), one)
    assert torch.equal(samples(generator, 12, batch_size=10)[:10], one)
    some = torch.cat(list(sample_uint8(generator, 2, indices=[3, 8])))
    assert (some.int() - one[[3, 8]].int()).abs().max() <= 1
    assert not torch.equal(samples(generator, 10, seed=1), one)


def test_latents():
    z = draw_latents(range(2000), 3, 16)
    assert torch.equal(draw_latents([5, 1999], 3, 16), z[[5, 1999]])
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    truncated = draw_latents(range(2000), 3, 16, truncation=0.5)
    assert truncated.abs().max() <= 0.5
    # Numbers within the bound are kept; the others are drawn again, not clipped to it.
    kept = z.abs() <= 0.5
    assert torch.equal(truncated[kept], z[kept])
    assert (truncated.abs() > 0.499).float().mean() < 0.01
    expected = 0.5 / 3**0.5  # a little less than that of a uniform distribution
    assert 0.95 * expected < truncated.std() < expected
    y = draw_classes(range(3000), 0, 3)
    assert (y.bincount() > 900).all()
    with pytest.raises(ValueError, match="truncation=0 must be above 0"):
        draw_latents([0], 0, 4, truncation=0)


def test_classes_in_turn(saved):
    generator, _ = load_generator(saved())
    mixed = samples(generator, 6, classes=[2, 0])
    assert torch.equal(mixed[::2], samples(generator, 6, classes=[2])[::2])
    with pytest.raises(ValueError, match="class 3 does not exist: the generator has 0 to 2"):
        samples(generator, 1, classes=[3])
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        samples(generator, 0)


@pytest.mark.parametrize("norm", ["EvoNormB0", "BN-ReLU"])
def test_standing_statistics_are_means_over_batches(norm, saved):
    generator, config = load_generator(saved(norm))
    before = [t.clone() for t in generator.state_dict().values()]
    standing = with_standing_statistics(generator, 3, batch_size=5, seed=2)
    after = generator.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not standing.training
    inputs = []
    layer = running_statistics_layers(generator)[0]
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    generator.train()
    for k in range(3):
        part = range(-1 - 5 * k, -6 - 5 * k, -1)
        y = draw_classes(part, 2, config.num_classes)
        with torch.no_grad():
            generator(draw_latents(part, 2, config.z_size), y)
    handle.remove()
    correction = int(norm == "BN-ReLU")  # torch's moving variance is the unbiased one
    expected = torch.stack([x.var((0, 2, 3), correction=correction) for x in inputs]).mean(0)
    torch.testing.assert_close(running_statistics_layers(standing)[0].running_var, expected)


def test_samples_with_standing_statistics(saved):
    generator, _ = load_generator(saved("EvoNormB0"))
    standing = samples(generator, 4, standing_statistics=5)
    assert not torch.equal(standing, samples(generator, 4))
    assert torch.equal(standing, samples(generator, 4, standing_statistics=5))
    s0, _ = load_generator(saved("EvoNormS0"))
    assert torch.equal(samples(s0, 4, standing_statistics=5), samples(s0, 4))


@pytest.mark.parametrize("kind", ["z", "class", "both"])
def test_interpolation_ends_at_samples(kind, saved):
    generator, _ = load_generator(saved())
    rows = list(interpolate_uint8(generator, 2, 5, kind=kind, classes=[0, 2]))
    assert [r.shape for r in rows] == [(5, 3, 32, 32)] * 2
    classes = {"z": [0, 0, 2, 2], "class": [0, 2] * 2, "both": [0, 2] * 2}[kind]
    ends = samples(generator, 4, classes=classes)
    for row in range(2):
        assert (rows[row][0].int() - ends[2 * row].int()).abs().max() <= 1
        if kind != "class":  # there the latent is that of the first end
            assert (rows[row][-1].int() - ends[2 * row + 1].int()).abs().max() <= 1
        assert not torch.equal(rows[row][0], rows[row][-1])


def test_grid():
    images = torch.arange(3 * 3 * 2 * 2, dtype=torch.uint8).view(3, 3, 2, 2)
    sheet = grid(images, 2)
    assert sheet.shape == (3, 4, 4)
    assert torch.equal(sheet[:, :2, 2:], images[1])
    assert torch.equal(sheet[:, 2:, :2], images[2])
    assert (sheet[:, 2:, 2:] == 0).all()


def test_bad_checkpoints(saved, tmp_path):
    path = saved()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut off, or no checkpoint of this package"):
        load_generator(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="is not a biggan checkpoint"):
        load_generator(path)
    torch.save({"format": "evonorm-plugins biggan", "version": 99}, path)
    with pytest.raises(CheckpointError, match="has version 99"):
        load_generator(path)
    with zipfile.ZipFile(tmp_path / "code.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch /tmp/ran'\ntR.")
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*code\.pt"):
        load_generator(tmp_path / "code.pt")


def test_weights_that_are_not_finite(saved):
    state = Generator(load_generator(saved())[1]).state_dict()
    state["blocks.0.conv2.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"are NaN or infinite: blocks\.0\.conv2\.weight;"):
        load_generator(saved(ema=state))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"config": None}, "damaged checkpoint: its config is no dict"),
        ({"classes": 3}, "damaged checkpoint: its classes is no list"),
        ({"step": "7"}, "damaged checkpoint: its step is no int"),
        ({"config": {"norm": "Nothing"}}, "does not fit this package: norm='Nothing'"),
        ({"ema": {}}, "does not fit this package: "),
        ({"ema": [1]}, "does not fit this package: "),
    ],
)
def test_checkpoints_with_something_else_inside(saved, broken, message):
    with pytest.raises(CheckpointError, match=message):
        load_generator(saved(**broken))


def test_truncation_near_zero():
    """By the inverse of the distribution: here as good as uniform, and quick."""
    for bound in (0.0099, 1e-5, 1e-30):
        z = draw_latents(range(200), 3, 64, truncation=bound).double() / bound
        assert z.abs().max() <= 1
        shares = (z.flatten().sort().values + 1) / 2
        expected = torch.linspace(0, 1, len(shares))
        assert (shares - expected).abs().max() < 0.02  # Kolmogorov's distance
    assert torch.equal(draw_latents(range(9), 0, 4, truncation=1e-300), torch.zeros(9, 4))
    some = draw_latents([5, 7], 3, 16, truncation=1e-3)
    assert torch.equal(some, draw_latents(range(9), 3, 16, truncation=1e-3)[[5, 7]])


def test_truncation_from_there_on_draws_again():
    generator = generator_of(1, 4)
    z = torch.randn(8, generator=generator)
    while (outside := z.abs() > 0.01).any():
        z[outside] = torch.randn(int(outside.sum()), generator=generator)
    assert torch.equal(draw_latents([4], 1, 8, truncation=0.01)[0], z)
