"""How the Triton kernels divide the work, and where they read and write."""

import pytest
import torch

sizes = pytest.importorskip("evonorm_plugins.kernels.sizes")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
plans = pytest.importorskip("evonorm_plugins.kernels.triton.plan")
tiles = pytest.importorskip("evonorm_plugins.kernels.triton.tiles")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (2, 6, 5, 9)  # of 2 groups: 3 channels are no power of two


def sizes_of(shape, layout):
    x = torch.empty(shape, device=DEVICE).to(memory_format=layout)
    return sizes.Sizes(*sizes.read_sizes("x", x))


def test_regimes_are_those_meant(regime, layout):
    x = sizes_of(SHAPE, layout)
    plan = plans.make_plan(x, 3, 1)
    chunk, chunks = plan.chunk, plan.chunks
    assert plan.fused == (regime in ("held", "fused"))
    assert (chunk == 1) == plan.tile.ONE == (regime == "held")
    assert (chunks > 1) == (chunks * plan.units > 2) == ("many" in regime or regime == "chunks")
    assert plan.merged == (regime == "many chunks")
    assert plan.spread == (regime in ("many chunks", "many samples"))
    units_of_a_group = plans.make_plan(x, 6, 1).tile.SUBS
    assert units_of_a_group == (1 if regime == "held" else 2)
    # The B series, whose statistics of the batch need all of x first.
    few = sizes_of((2, 3, 5, 13), layout)
    plan = plans.make_plan(few, 1, 2, chunked=True)
    assert not plan.fused
    assert (plan.chunks > 1) == ("many" in regime or regime == "chunks")
    assert (plan.chunk == 1) == plan.tile.ONE == (regime == "held")


@triton.jit
def _addresses(out_ptr, C, HW: tl.int64, chunk: tl.int64, chunks, T: tl.constexpr):
    at = tiles.place(C, HW, chunk, chunks, False, T)
    base, offsets, mask = tiles.pixels(at.first, at, T)
    lane = tl.arange(0, T.K)[None, :, None] * T.P + tl.arange(0, T.P)[None, None, :]
    out_ptr += tl.program_id(0) * (T.K * T.P)
    tl.store(out_ptr + lane, tl.where(mask, base + offsets, -1))


@pytest.mark.parametrize("last", [False, True])
def test_offsets_beyond_32_bits(last):
    """Two chunks of two channel blocks, in an image of 2^40 pixels."""
    channels, pixels, chunk = 4, 2**40, 2**38
    constants = {"D": 1, "PAD": 1, "SUBS": 1, "U": 2, "Q": 1, "K": 2, "L": 4, "P": 4}
    constants.update(ONE=False, LAST=last, VEC=1 if last else 16, WIDE=True, FAST=False)
    tile = tiles.Tile(**constants)
    out = torch.zeros(4, 2, 4, dtype=torch.int64, device=DEVICE)
    _addresses[(4,)](out, channels, pixels, chunk // 4, pixels // chunk, T=tile)
    for program, (start, block) in enumerate([(0, 0), (0, 1), (chunk, 0), (chunk, 1)]):
        for k in range(2):
            c, p = block * 2 + k, start + torch.arange(4)
            expected = p * channels + c if last else c * pixels + p
            assert torch.equal(out[program, k].cpu(), expected)


def test_offsets_are_wide_where_a_tile_is():
    for pixels, last, expected in (
        (2**31, False, True),
        (2**20, False, False),
        (2**40, True, False),
    ):
        wide = plans._choose(1, 64, pixels, last, 2, 2, 1, False).tile.WIDE
        assert wide == expected


def test_few_kernels_for_many_sizes():
    """Of a layer whose input changes its size with every step."""
    variants = set()
    for height in range(100, 200, 3):
        for width in range(120, 260, 7):
            for tensors in (1, 2):
                plan = plans._choose(2, 256, height * width, False, 2, 8, tensors, False)
                variants.add((tensors, plan.tile, plan.fused, str(plan.options)))
    # 3 powers of two that divide H W; forward and backward.
    assert len(variants) == 6
