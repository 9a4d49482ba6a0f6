"""What a step of training depends on: not on how its batch is divided."""

import copy
import itertools

import pytest
import torch

from biggan.generator import Generator
from biggan.losses import accuracies, discriminator_loss, generator_loss, orthogonal_penalty
from biggan.spectral import spectral_layers
from biggan.trainer import Trainer
from evonorm_plugins.errors import NonFiniteError
from evonorm_plugins.layers import moving_statistics_of
from evonorm_plugins.training.ema import EMA
from evonorm_plugins.training.ranks import Ranks


def batches(config, size):
    """Endless batches of ``size`` out of the same sequence of drawn images."""
    random = torch.Generator().manual_seed(5)
    shape = (config.batch_size, 3, config.resolution, config.resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    labels = torch.randint(config.num_classes, (config.batch_size,), generator=random)
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    return itertools.cycle(parts)


def train(config, steps=2):
    trainer = Trainer(config, Ranks("cpu"))
    data = batches(config, config.batch_size // config.accumulations)
    for _ in range(steps):
        values = trainer.train_step(data)
    return trainer, dict(zip(*values, strict=True))


def weights(trainer):
    modules = trainer.generator, trainer.discriminator, trainer.ema.module
    return [t for m in modules for t in m.state_dict().values()]


@pytest.mark.parametrize("norm", ["EvoNormS0", "GN-ReLU"])
def test_accumulation_equals_the_large_batch(norm, tiny):
    # With a small epsilon Adam takes a whole step for the sign of a gradient of almost nothing.
    options = {"norm": norm, "batch_size": 8, "d_steps": 2, "adam_eps": 1e-2, "orthogonal": 1e-4}
    one, numbers = train(tiny(**options))
    four, same = train(tiny(**options, accumulations=4))
    torch.testing.assert_close(weights(four), weights(one), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(same, numbers, rtol=1e-4, atol=1e-5)


def test_accumulation_is_no_large_batch_for_batch_statistics(tiny):
    one, _ = train(tiny(norm="EvoNormB0"))
    four, _ = train(tiny(norm="EvoNormB0", accumulations=4))
    far = [(a - b).abs().max() for a, b in zip(weights(one), weights(four), strict=True)]
    assert max(far) > 1e-4


def test_a_step_changes_every_parameter(tiny):
    trainer = Trainer(tiny(), Ranks("cpu"))
    modules = {"g": trainer.generator, "d": trainer.discriminator, "ema": trainer.ema.module}
    before = {(k, n): p.clone() for k, m in modules.items() for n, p in m.named_parameters()}
    data = batches(trainer.config, 8)
    # At the first step the gain of the attention is 0, and nothing reaches what is inside it.
    for _ in range(2):
        trainer.train_step(data)
    for key, module in modules.items():
        for name, p in module.named_parameters():
            assert not torch.equal(p, before[key, name]), (key, name)
    assert trainer.step == 2
    assert not any(p.requires_grad for p in trainer.ema.module.parameters())


def test_steps_depend_on_the_seed_alone(tiny):
    first, _ = train(tiny())
    torch.rand(17)  # what others draw must not matter
    second, _ = train(tiny())
    other, _ = train(tiny(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert not torch.equal(weights(first)[0], weights(other)[0])


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_bfloat16(norm, tiny):
    trainer, numbers = train(tiny(norm=norm, precision="bf16"), steps=3)
    assert all(torch.isfinite(v) for v in numbers.values())
    assert {t.dtype for t in weights(trainer) if t.is_floating_point()} == {torch.float32}


def test_training_lowers_the_loss_of_the_discriminator(tiny):
    config = tiny(d_lr=2e-3, g_lr=1e-9)
    trainer = Trainer(config, Ranks("cpu"))
    data = batches(config, 8)
    losses = [trainer.train_step(data)[1][0].item() for _ in range(25)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_not_finite_is_found_before_the_update(tiny):
    trainer = Trainer(tiny(), Ranks("cpu"))
    data = batches(trainer.config, 8)
    trainer.train_step(data)
    with torch.no_grad():
        trainer.generator.blocks[0].conv1.bias[1] = float("nan")
    before = copy.deepcopy(trainer.discriminator.state_dict())
    message = "step 2: the discriminator's loss is nan.*first tensor.*generator blocks.0.conv1.bias"
    with pytest.raises(NonFiniteError, match=message):
        trainer.train_step(data)
    after = trainer.discriminator.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_state_goes_on_bit_for_bit(tiny):
    trainer = Trainer(tiny(norm="EvoNormB0"), Ranks("cpu"))
    data = batches(trainer.config, 8)
    trainer.train_step(data)
    state = copy.deepcopy(trainer.state())
    trainer.train_step(data)
    other = Trainer(tiny(norm="EvoNormB0"), Ranks("cpu"))
    other.load_state(state)
    other.train_step(data)
    assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(trainer), strict=True))


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(
        (0 + 0.5 + 2) / 3 + (0 + 1.5 + 1) / 3
    )
    assert generator_loss(fake).item() == pytest.approx(0.5)
    assert accuracies(real, fake).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_orthogonal_penalty(tiny):
    generator = Generator(tiny())
    for _, layer in spectral_layers(generator):
        torch.nn.init.normal_(layer.weight)
    expected = 0
    for _, layer in spectral_layers(generator):
        w = layer.weight.flatten(1)
        gram = w @ w.t()
        expected += (gram - torch.diag(gram.diagonal())).square().sum()
    torch.testing.assert_close(orthogonal_penalty(generator), expected, rtol=1e-4, atol=1e-2)


def test_average(tiny):
    generator = Generator(tiny(norm="BN-ReLU"))
    ema = EMA(generator, 0.75, moving_statistics_of, start=1)
    first = {k: v.clone() for k, v in generator.state_dict().items()}
    layer = generator.blocks[0].norm1.layer.norm
    for step in (1, 2):
        with torch.no_grad():
            generator.conv.weight += 1
            layer.running_var += 1
            layer.num_batches_tracked += 1
            generator.conv.u.fill_(step)
        ema.update(step)
    averaged = ema.module.state_dict()
    name = "blocks.0.norm1.layer.norm"
    # Step 1 is before the start: a copy. Step 2: a quarter of what was added.
    torch.testing.assert_close(averaged["conv.weight"], first["conv.weight"] + 1.25)
    torch.testing.assert_close(averaged[f"{name}.running_var"], first[f"{name}.running_var"] + 1.25)
    assert averaged[f"{name}.num_batches_tracked"] == 2
    assert (averaged["conv.u"] == 2).all()


@pytest.mark.parametrize(
    "norm",
    [
        *("EvoNormB0", "EvoNormB1", "EvoNormB2", "EvoNormS0", "EvoNormS1", "EvoNormS2"),
        *("BN-ReLU", "GN-ReLU(groups=8)", "GN-ReLU(groups=16)", "GN-ReLU(groups=32)"),
        *("LN-ReLU", "PixelNorm-ReLU"),
    ],
)
def test_every_norm_of_table_5_trains(norm, tiny):
    trainer, numbers = train(tiny(norm=norm, channels=16, g_lr=1e-3, d_lr=1e-3), steps=20)
    assert trainer.step == 20
    assert all(torch.isfinite(v) for v in numbers.values())
