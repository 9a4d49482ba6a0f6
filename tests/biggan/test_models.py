"""The architecture: sizes, parameters, conditioning, and what a forward pass depends on."""

import pytest
import torch
import torch.nn.functional as F

from biggan.blocks import Attention, DiscriminatorBlock
from biggan.config import from_dict
from biggan.discriminator import Discriminator
from biggan.generator import Generator, frozen_running_statistics, running_statistics_layers
from biggan.spectral import SNConv2d, SNLinear, power_iteration, singular_values, spectral_layers
from evonorm_plugins import ConditionalNormAct, NormAct

NORMS = [
    *("EvoNormB0", "EvoNormB1", "EvoNormB2", "EvoNormS0", "EvoNormS1", "EvoNormS2"),
    *("BN-ReLU", "GN-ReLU(groups=8)", "GN-ReLU(groups=16)", "GN-ReLU", "LN-ReLU"),
    *("PixelNorm-ReLU", "FRN", "BN-Swish", "Random", "Random + rej", "RS + rej"),
]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("BN-ReLU", 50_244_484), ("EvoNormS0", 50_265_220), ("EvoNormB0", 50_265_220)],
)
def test_parameters_of_the_generator_at_128(norm, expected):
    # Only sizes matter here; drawing orthogonal matrices of 50 million numbers takes seconds.
    with torch.device("meta"):
        generator = Generator(from_dict({"norm": norm, "num_classes": 1000}))
    assert parameters(generator) == expected
    layers = [m for m in generator.modules() if isinstance(m, NormAct)]
    assert len(layers) == 41
    assert sum(isinstance(m, ConditionalNormAct) for m in generator.modules()) == 40


def test_parameters_of_the_discriminator_at_128():
    with torch.device("meta"):
        discriminator = Discriminator(from_dict({"num_classes": 1000}))
    assert parameters(discriminator) == 34_590_210


@pytest.mark.parametrize(
    ("resolution", "widths"),
    [
        (32, [4, 4, 4, 4, 4, 4]),
        (64, [16, 16, 16, 8, 8, 4, 4, 2]),
        (128, [16, 16, 16, 8, 8, 4, 4, 2, 2, 1]),
        (256, [16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1]),
        (512, [16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1, 1, 1]),
    ],
)
def test_blocks_of_every_resolution(resolution, widths):
    config = from_dict({"resolution": resolution, "num_classes": 2, "channels": 8})
    generator, discriminator = Generator(config), Discriminator(config)
    blocks = [b for b in generator.blocks if not isinstance(b, Attention)]
    assert [b.out_channels for b in blocks] == [8 * w for w in widths]
    assert [b.upsample for b in blocks] == [False, True] * (len(widths) // 2)
    mirrored = [b for b in discriminator.blocks if isinstance(b, DiscriminatorBlock)]
    inputs = [b.conv1.in_channels for b in generator.blocks if not isinstance(b, Attention)]
    outputs = [b.conv4.out_channels for b in mirrored]
    assert outputs == inputs[::-1]
    with torch.no_grad():
        images = generator(torch.randn(1, 128), torch.tensor([1]))
        assert images.shape == (1, 3, resolution, resolution)
        assert images.abs().max() <= 1
        assert discriminator(images, torch.tensor([1])).shape == (1,)


@pytest.mark.parametrize("size", [32, 128])
def test_attention_is_where_the_config_says(size):
    config = from_dict({"resolution": 256, "channels": 8, "num_classes": 2, "attention": [size]})
    sizes = []
    for module in (Generator(config), Discriminator(config)):
        for block in module.blocks:
            if isinstance(block, Attention):
                block.register_forward_hook(lambda m, x, y: sizes.append(y.shape[-1]))
        with torch.no_grad():
            if isinstance(module, Generator):
                module(torch.randn(1, 128), torch.tensor([0]))
            else:
                module(torch.randn(1, 3, 256, 256), torch.tensor([0]))
    assert sizes == [size, size]


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_has_gradients_everywhere(norm, tiny):
    config = tiny(norm=norm)
    generator, discriminator = Generator(config), Discriminator(config)
    for module in (generator, discriminator):
        for block in module.blocks:
            if isinstance(block, Attention):
                torch.nn.init.ones_(block.gain)  # at its 0 nothing reaches the attention
    y = torch.tensor([0, 1, 2, 0])
    loss = discriminator(generator(torch.randn(4, 8), y), y).sum()
    loss.backward()
    for name, p in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        # "Random" is constant over space: what tells positions apart gets no gradient in places.
        assert p.grad.abs().max() > 0 or norm.startswith("Random"), name


@pytest.mark.parametrize("norm", ["EvoNormS0", "GN-ReLU"])
def test_samples_do_not_depend_on_their_batch(norm, tiny):
    generator = Generator(tiny(norm=norm)).double()  # sums of other batches round differently
    z, y = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        together = generator(z, y)
        alone = torch.cat([generator(z[i : i + 1], y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


def test_classes_and_latents_matter(tiny):
    generator = Generator(tiny())
    z = torch.randn(2, 8)
    with torch.no_grad():
        a, b = generator(z, torch.tensor([0, 0]))
        c, _ = generator(z, torch.tensor([1, 1]))
        embedded = generator(z, generator.embed(torch.tensor([0, 0])))
    assert (a - b).abs().max() > 1e-3
    assert (a - c).abs().max() > 1e-3
    torch.testing.assert_close(embedded[0], a)


def test_enlarged_convolution_is_a_convolution_of_the_enlarged():
    conv = SNConv2d(5, 7, 3)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    y, expected = conv.upsampled(x), conv(F.interpolate(x, scale_factor=2))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    dy, leaves = torch.randn_like(y), [x, conv.weight, conv.bias]
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_spectral_norm_divides_by_the_largest_singular_value():
    layer = SNLinear(6, 9)
    torch.nn.init.normal_(layer.weight)
    power_iteration(layer, 200)
    expected = torch.linalg.svdvals(layer.weight)[0]
    torch.testing.assert_close(singular_values(layer)[1], expected[None])
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.normalized_weight())[0], torch.tensor(1.0)
    )


def test_gradient_of_spectral_norm():
    layer = SNConv2d(3, 4, 3, bias=False).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)

    def normalized(weight):
        return F.conv2d(x, weight / (layer.u @ weight.flatten(1) @ layer.v), padding=1)

    dy = torch.randn(2, 4, 5, 5, dtype=torch.double)
    expected = torch.autograd.grad(normalized(layer.weight), layer.weight, dy)
    torch.testing.assert_close(torch.autograd.grad(layer(x), layer.weight, dy), expected)


def test_forward_passes_change_no_singular_vectors(tiny):
    generator, discriminator = Generator(tiny()), Discriminator(tiny())
    before = [
        layer.u.clone() for m in (generator, discriminator) for _, layer in spectral_layers(m)
    ]
    y = torch.tensor([0, 1])
    discriminator(generator(torch.randn(2, 8), y), y).sum().backward()
    after = [layer.u for m in (generator, discriminator) for _, layer in spectral_layers(m)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_class_embedding_is_not_spectrally_normalized(tiny):
    generator = Generator(tiny())
    names = {name for name, _ in spectral_layers(generator)}
    assert "embedding" not in names
    assert {"linear", "conv", "blocks.0.norm1.gain", "blocks.0.norm1.bias"} <= names
    assert generator.blocks[0].norm1.gain.bias is None
    assert {"embedding", "linear"} <= {name for name, _ in spectral_layers(Discriminator(tiny()))}


def test_weights_are_orthogonal_at_first(tiny):
    for name, layer in spectral_layers(Generator(tiny())):
        w = layer.weight.detach().flatten(1)
        gram = w @ w.t() if len(w) <= w.shape[1] else w.t() @ w
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_activation_checkpointing_changes_nothing(norm, tiny):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        config = tiny(norm=norm, activation_checkpointing=checkpointing)
        generator, discriminator = Generator(config), Discriminator(config)
        y = torch.tensor([0, 1, 2, 0])
        discriminator(generator(torch.randn(4, 8), y), y).sum().backward()
        grads = [p.grad for m in (generator, discriminator) for p in m.parameters()]
        running = [m.running_var for m in running_statistics_layers(generator)]
        results.append((grads, running))
    torch.testing.assert_close(*results)


def test_frozen_statistics_are_restored(tiny):
    generator = Generator(tiny(norm="EvoNormB0"))
    layers = running_statistics_layers(generator)
    assert len(layers) == 13
    with frozen_running_statistics(generator):
        generator(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))
    assert all((layer.running_var == 1).all() and layer.momentum == 0.1 for layer in layers)
