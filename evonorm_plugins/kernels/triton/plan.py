"""How much a program does, and how kernels are launched.

- *held*: a group fits in the registers of one program. x is read once.
- *fused*: enough groups to fill the GPU. A program reads its group twice, the second time from the
  end backwards, so that most of it comes from the caches.
- *chunks*: few large groups; and the B series, whose batch statistics need all of x first. A
  kernel writes the moments of every chunk; the next one merges those of its group itself unless
  they are many, and goes through x in the opposite order, again for the L2 cache. Likewise with
  the sums of the backward pass, which some programs of the second kernel add up over all chunks.

So launches are, forward and backward: held and fused 1 and 2, the last one to add up over samples
(1 and 1 where there is one); chunks 2 and 2, of the B series, too; one more where parts are many,
and two in the backward pass of the B series where those of a sample are. The affine transform has 1
and 2, or 1 and 1. One kernel for a few large groups would save a forward launch, 2 to 3
microseconds on the device, and lose more: a multiprocessor alone reads some 36 to 70 kB in a
microsecond (of an H200's 4.8 TB/s by 132, and what it can if others rest), and x is read one and
a half times and written once. With 32 groups both take the same at 60 to 160 kB of x in a group;
one that is not held has 32 kB in half precision and 64 kB in float32, or more.

Height and width may change with every call: kernels are not specialised on them, but for powers of
two that divide their product and for the size of a tile.

How to launch. A kernel's parameters are tensors, then values, then C, HW, chunk, chunks, then
constants, the last of them T. A plan makes a Launch, which is kept for all calls of the same sizes
(see entry.py) and called with the tensors:

    plan = make_plan(sizes, depth, tensors)
    launch = plan.launch(_kernel, eps, KIND="s0")
    launch((x, y, weight))
"""

from typing import NamedTuple

import torch
import triton

from evonorm_plugins.kernels.library import DTYPES
from evonorm_plugins.kernels.triton.launch import Launch
from evonorm_plugins.kernels.triton.tiles import Tile

OPTIONS = {"enable_fp_fusion": True}  # fused multiply and add

_HELD = 16384  # most elements of a tile kept in registers
_TILE = 4096  # elements of a tile that moves over pixels
_UNIT = 64  # channels of a unit of larger groups
# Chunks: 16 programs for each of the 132 multiprocessors of an H200, so that the last ones to
# finish are a small part of the time, but no program for less than 2 tiles.
_PROGRAMS = 2112
_CHUNK_TILES = 2
# Fused: at least 2 groups for each multiprocessor. What they have read once and not yet twice is
# in the 50 MB of cache if it is 2 of 128 kB or 1 of 256 kB for each; of 512 kB a part is.
_FUSED_PROGRAMS = 264
_CACHED_BYTES = 128 * 1024
_FUSED_BYTES = 512 * 1024
_PARTS = 64  # parts of a group that every program merges itself
# Programs that merge a channel's parts of all samples read 3 numbers of each: 12 parts^2 C bytes
# together. From the L2 cache, with some 6 TB/s, 8 MiB take as long as one more launch.
_AGAIN_BYTES = 8 * 2**20


class Plan(NamedTuple):
    """The regime of a call."""

    fused: bool  # one program for a group, else chunks
    merged: bool  # the parts of a group are so many that a kernel of its own merges them
    spread: bool  # likewise the parts of a channel of all samples
    blocks: int  # of channels, of all samples
    units: int  # of a sample
    samples: int
    channels: int
    pixels: int
    chunk: int  # tiles of a chunk of pixels
    chunks: int  # of a sample
    tile: Tile
    affine_stride: int  # elements from one sample's gamma to the next's: 0 where all share it
    options: dict  # of launches

    def launch(self, kernel, *values, extra=0, **constants):
        """Of a kernel on tiles, and on ``extra`` programs that come before them."""
        values = (*values, self.channels, self.pixels, self.chunk, self.chunks)
        grid = (extra + self.blocks * self.chunks,)
        constants = {**constants, "T": self.tile, **self.options, **OPTIONS}
        return Launch(kernel, grid, values, constants)

    @property
    def rows(self):
        """Chunks of all samples."""
        return self.samples * self.chunks


def make_plan(sizes, depth, tensors, chunked=False):
    """Choose the regime.

    Args:
        sizes: the :class:`Sizes` of the call.
        depth: channels of a group.
        tensors: number of tensors like x that are read.
        chunked: in chunks that need nothing of each other.
    """
    # The memory is the same where there is one pixel; channels are the longer axis.
    last = sizes.pixels == 1 or bool(sizes.channels_last)
    size, stride = DTYPES[sizes.dtype].itemsize, sizes.channels * sizes.per_sample
    n, channels, pixels = sizes.samples, sizes.channels, sizes.pixels
    return _choose(n, channels, pixels, last, size, depth, tensors, chunked, stride)


def _choose(n, channels, pixels, last, size, depth, tensors, chunked, affine_stride=0):
    row = triton.next_power_of_2(pixels)
    pad = triton.next_power_of_2(depth)
    if pad * row * tensors > _HELD:
        pad = min(pad, _UNIT)
    subs = triton.cdiv(depth, pad)
    units = channels // depth * subs
    most = triton.next_power_of_2(units) * pad if subs == 1 else pad
    # Where channels are last a tile has whole cache lines of them, or halves if that lets it be
    # held or cached.
    lines = (128, 64) if last else (0,)
    choices = [_channels_of_tile(pad, most, row, size, line) for line in lines]
    read = pixels * size * tensors  # bytes of a channel
    k, held = _first_that_fits(choices, row * tensors, read, subs == 1, chunked)
    blocks = n * triton.cdiv(units, k // pad)

    chunks = triton.cdiv(_PROGRAMS, blocks)
    if not chunked:
        chunks = min(chunks, max(1, 2 * _TILE // (k // pad * subs)))
    p, warps = _pixels_of_tile(k, row, tensors, held)
    chunks = max(1, min(chunks, triton.cdiv(pixels, p) // _CHUNK_TILES))
    many = blocks >= _FUSED_PROGRAMS and k * read <= _FUSED_BYTES
    fused = not chunked and subs == 1 and (held or chunks == 1 or many)
    options = {}
    if fused and not held:
        # Larger programs are fewer at a time, and so is what waits in the cache for them.
        while warps < 32 and p < row and k * read * 16 > _CACHED_BYTES * warps:
            p, warps = 2 * p, 2 * warps
        if warps == 16 and not torch.version.hip:
            options["maxnreg"] = 64  # makes room for 2 programs
    tiles = triton.cdiv(pixels, p)
    chunk = tiles if fused else triton.cdiv(tiles, chunks)
    chunks = triton.cdiv(tiles, chunk)
    vec = 1 if last else next(d for d in (16, 4, 1) if pixels % d == 0)
    rows = n * chunks
    # 8 threads for a row of a tile, each with what it can load at once.
    length = p if last else min(p, 8 * min(vec, 16 // size))
    tile = Tile(
        D=depth,
        PAD=pad,
        SUBS=subs,
        U=k // pad,
        Q=p // length,
        K=k,
        L=length,
        P=p,
        ONE=chunk == 1,
        LAST=last,
        VEC=vec,
        WIDE=(p * channels if last else k * pixels) >= 2**31,
        FAST=size < 4,
    )
    return Plan(
        fused=fused,
        merged=not fused and chunks * subs > _PARTS,
        spread=rows > _PARTS or 12 * rows * rows * channels > _AGAIN_BYTES,
        blocks=blocks,
        units=units,
        samples=n,
        channels=channels,
        pixels=pixels,
        chunk=chunk,
        chunks=chunks,
        tile=tile,
        affine_stride=affine_stride,
        options={"num_warps": min(warps, 32), **options},
    )


def _channels_of_tile(pad, most, row, size, line):
    k = pad
    while k < most and (k * size < line or k * row < _TILE):
        k *= 2
    return k


def _first_that_fits(options, held, read, whole, chunked):
    """Of numbers of channels the first that can be held, else cached, else fused; whether held.

    ``held`` and ``read``: elements in registers and bytes of a channel; ``whole``: a tile has whole
    groups.
    """
    holds = [k for k in options if k * held <= _HELD and whole]
    caches = [k for k in options if k * read <= _CACHED_BYTES and not chunked]
    fuses = [k for k in options if k * read <= _FUSED_BYTES and not chunked]
    return (holds or caches or fuses[::-1] or options)[0], bool(holds)


def _pixels_of_tile(k, row, tensors, held):
    """And warps. A thread has 32 elements in registers; 16 in loops, which have sums too."""
    p = row if held else min(row, max(1, _TILE // (tensors * k)))
    return p, max(1, k * p * tensors // (1024 if held else 512))
