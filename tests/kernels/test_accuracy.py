"""The CPU kernels against plain torch in float64: dtypes, layouts, hard numbers, random cases.

Each by every instruction set of this processor.
"""

import random

import pytest
import torch

from evonorm_plugins import kernels

pytestmark = pytest.mark.skipif(
    kernels.cpu.missing() is not None, reason=f"no CPU kernels: {kernels.cpu.missing()}"
)

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[..., :1].expand_as(x),
}
# Blocks are of 512 pixels, tiles of 32 pixels and 64 channels: sizes on both sides of each.
SHAPES = [
    (3, 8, 5, 7),
    (1, 4, 1, 1),
    (5, 12, 1, 1),
    (2, 4, 1, 31),
    (1, 4, 33, 1),
    (2, 132, 3, 3),
    (1, 64, 7, 7),
    (2, 4, 32, 32),
    (1, 8, 41, 75),
    (1, 68, 9, 11),
    (2, 36, 1, 2),  # rows shorter than a vector: packed
    (1, 20, 2, 4),
]
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(kind, shape, layout, draw, assert_as_good_as_torch):
    # Of x / |x| the gradient is what rounding leaves: there the statistic is given.
    alone = kind == "rs_rej" and shape[0] * shape[2] * shape[3] == 1
    arguments, dy = draw(shape, scale=2, shift=0.3, batch_var=alone)
    arguments["x"] = LAYOUTS[layout](arguments["x"])
    assert_as_good_as_torch(kind, arguments, dy, "cpu")


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 5, 7), (2, 68, 33, 33), (2, 36, 1, 2)], ids=str)
def test_half_precision(kind, dtype, shape, layout, draw, assert_as_good_as_torch):
    arguments, dy = draw(shape, dtype=dtype, scale=2, shift=0.3)
    arguments["x"] = LAYOUTS[layout](arguments["x"])
    assert_as_good_as_torch(kind, arguments, dy, "cpu")


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(kind, layout, conditional, draw, assert_as_good_as_torch, differentiate):
    """Of x, and of another kind of dy; gamma and beta per channel, and per sample and channel."""
    arguments, dy = draw((3, 8, 6, 7), conditional=conditional)
    arguments["x"] = LAYOUTS[layout](arguments["x"])
    for other in LAYOUTS.values():
        assert_as_good_as_torch(kind, arguments, other(dy), "cpu")
    y = differentiate(kind, arguments, dy, "cpu")["y"]
    last = arguments["x"].is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("kind", ["b0", "b1", "b2", "rs_rej"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_given_variance(kind, layout, draw, assert_as_good_as_torch):
    """As in inference; the variance has a gradient of its own."""
    for conditional in (False, True):
        arguments, dy = draw((3, 8, 6, 7), conditional=conditional, batch_var=True)
        arguments["x"] = LAYOUTS[layout](arguments["x"])
        assert_as_good_as_torch(kind, arguments, dy, "cpu")


@pytest.mark.parametrize("groups", [1, 2, 8, 64])
@pytest.mark.parametrize("kind", ["s0", "s1", "s2", "gn", "gn_relu", "gn_silu", "over_std"])
def test_groups(kind, groups, draw, assert_as_good_as_torch):
    """One, as in layer normalization, to one for each channel, as in instance normalization."""
    arguments, dy = draw((2, 64, 5, 7))
    for layout in ("contiguous", "channels last"):
        arguments["x"] = LAYOUTS[layout](arguments["x"])
        assert_as_good_as_torch(kind, arguments, dy, "cpu", groups=groups)


HARD = {
    "large": {"scale": 1e4},
    "small": {"scale": 1e-3},
    "tiny": {"scale": 1e-30},
    "far mean": {"scale": 1e-2, "shift": 1e3},
    "zeros": {"scale": 0},
    "constant": {"scale": 0, "shift": 3},
    "negative": {"scale": 1, "shift": -200},
}


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("numbers", HARD)
def test_hard_numbers(kind, numbers, layout, draw, assert_as_good_as_torch):
    arguments, dy = draw((2, 8, 33, 37), **HARD[numbers])
    arguments["x"] = LAYOUTS[layout](arguments["x"])
    if kind.startswith("b") and numbers == "constant":
        # Rounding decides on which side of the maximum equal numbers come to lie.
        arguments["x"] += torch.arange(2.0)[:, None, None, None]
    assert_as_good_as_torch(kind, arguments, dy, "cpu")


@pytest.mark.parametrize("case", range(60))
def test_random_cases(case, kind, draw, assert_as_good_as_torch):
    choose = random.Random(f"{kind} {case}")
    pixels = choose.choice([(1, 1), (7, 7), (1, 40), (19, 23), (27, 39)])
    groups = choose.choice([1, 2, 4])
    shape = (choose.randint(1, 5), groups * choose.randint(1, 20), *pixels)
    torch.manual_seed(case)
    arguments, dy = draw(
        shape,
        dtype=choose.choice([torch.float32, *HALF]),
        scale=10 ** choose.uniform(-4, 3),
        shift=choose.choice([0, 0.1, -1, 10]),
        conditional=choose.random() < 0.3,
        batch_var=kind.startswith("b") and choose.random() < 0.3,
    )
    arguments["x"] = choose.choice(list(LAYOUTS.values()))(arguments["x"])
    dy = choose.choice(list(LAYOUTS.values()))(dy)
    options = {"groups": groups, "eps": choose.choice([1e-5, 1e-3])}
    # Small sums of large terms, in which plain torch may have been lucky.
    assert_as_good_as_torch(kind, arguments, dy, "cpu", slack=2e-5, **options)


@pytest.mark.parametrize("name", kernels.cpu.INSTRUCTION_SETS)
def test_instruction_sets_are_compared(name, draw, differentiate_all):
    """All the tests here and in test_not_finite.py are of those that this processor has."""
    found = differentiate_all("s0", *draw((1, 4, 1, 1)), "cpu")
    if name not in found:
        pytest.skip(f"this processor has no {name}")
    assert kernels.cpu.instruction_set() == list(found)[-1]
