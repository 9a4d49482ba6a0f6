"""What the discriminator sees where images are augmented."""

import pytest
import torch

from biggan.augment import NUMBERS, POLICIES, augmented
from biggan.config import from_dict
from evonorm_plugins.errors import ConfigError
from tests.biggan.conftest import TINY
from tests.biggan.test_steps import train, weights

FIRST = {"color": 0, "translation": 3, "cutout": 5}


def numbers_of(name, *values, n=1):
    numbers = torch.full((n, NUMBERS), 0.5)
    numbers[:, FIRST[name] : FIRST[name] + len(values)] = torch.tensor(values)
    return numbers


@pytest.mark.parametrize("name", ["color", "translation"])
def test_the_middle_of_a_range_changes_nothing(name):
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(augmented(x, numbers_of(name, n=2), [name]), x)


def test_color():
    x = torch.rand(1, 3, 4, 4) * 2 - 1
    brighter = augmented(x, numbers_of("color", 0.75), ["color"])
    torch.testing.assert_close(brighter, x + 0.25)
    grey = augmented(x, numbers_of("color", 0.5, 0.0), ["color"])
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = augmented(x, numbers_of("color", 0.5, 0.5, 0.0), ["color"])
    torch.testing.assert_close(flat - flat.mean(), (x - x.mean()) / 2)


def test_translation_moves_by_an_eighth_at_most():
    x = torch.arange(1.0, 1 + 16 * 24).reshape(1, 1, 16, 24)
    moved = augmented(x, numbers_of("translation", 0.0, 0.999), ["translation"])
    expected = torch.zeros_like(x)
    expected[:, :, 2:, :-3] = x[:, :, :-2, 3:]
    assert torch.equal(moved, expected)


def test_cutout():
    x = torch.ones(1, 2, 8, 8)
    for place, rows in ((0.5, slice(2, 6)), (0.0, slice(0, 2)), (0.999, slice(6, 8))):
        expected = x.clone()
        expected[:, :, rows, 2:6] = 0
        assert torch.equal(augmented(x, numbers_of("cutout", place), ["cutout"]), expected)


def test_images_have_numbers_of_their_own_and_gradients():
    x = (torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1).requires_grad_()
    numbers = torch.rand(3, NUMBERS, generator=torch.Generator().manual_seed(0))
    together = augmented(x, numbers, POLICIES)
    apart = [augmented(x[k : k + 1], numbers[k : k + 1], POLICIES) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(apart))
    assert torch.autograd.gradcheck(lambda x: augmented(x, numbers, POLICIES), x)


def test_a_step_with_it_is_divided_as_one_without(tiny):
    """Accumulations change nothing; the discriminator sees other images than without."""
    options = {"adam_eps": 1e-2, "augment": list(POLICIES)}
    one, numbers = train(tiny(**options))
    two, same = train(tiny(**options, accumulations=2))
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(same, numbers, rtol=1e-4, atol=1e-5)
    plain, other = train(tiny(adam_eps=1e-2))
    assert not torch.equal(numbers["d_score_real"], other["d_score_real"])
    assert not torch.equal(weights(plain)[0], weights(one)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ["colour"]}, "'colour' is not one of color, translation, cutout"),
        ({"augment": ["cutout", "cutout"]}, "one comes twice"),
        ({"augment": ["color"], "image_channels": 1}, "color is for images with 3 channels"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({**TINY, **options})
