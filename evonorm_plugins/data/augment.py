"""Crops, flips and what else is done to images before a classifier sees them."""

import math

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2


def crop(images, size, top, left, flipped):
    """A crop of every image of a batch.

    Args:
        images: uint8 (N, 3, H, W).
        size: side of the crops.
        top, left: int64 (N,), corners, which may be outside; what is outside is 0.
        flipped: bool (N,), whether left and right are exchanged.

    Returns:
        uint8 (N, 3, size, size)
    """
    height, width = images.shape[2:]
    rows = top[:, None] + torch.arange(size)
    columns = left[:, None] + torch.arange(size)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    places = rows.clamp(0, height - 1)[:, :, None] * width
    places = (places + columns.clamp(0, width - 1)[:, None, :]).flatten(1)
    pixels = images.flatten(2).gather(2, places[:, None].expand(-1, 3, -1))
    pixels = pixels.view(len(images), 3, size, size)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    inside = inside & ((columns >= 0) & (columns < width))[:, None, None, :]
    return pixels if inside.all() else pixels.mul_(inside)


def random_affine(count, generator, *, rotation=18.0, zoom=0.15, shift=0.2, flip=True):
    """Random maps of an image's places to those that its pixels are taken from.

    Args:
        count: how many.
        generator: ``torch.Generator``.
        rotation: at most so many degrees to either side.
        zoom: of height and width, each by a factor of its own from 1 - zoom to 1 + zoom.
        shift: at most so large a share of height and of width.
        flip: whether half of them exchange left and right.

    Returns:
        float32 (count, 2, 3), as ``torch.nn.functional.affine_grid`` takes them.
    """

    def uniform(most):
        return (2 * torch.rand(count, generator=generator) - 1) * most

    angle, mirror = uniform(math.radians(rotation)), uniform(1).sign()
    if not flip:
        mirror = torch.ones(count)
    zoom_x, zoom_y = 1 + uniform(zoom), 1 + uniform(zoom)
    # Coordinates go from -1 to 1, so that the whole width is 2.
    rows = [
        torch.stack([angle.cos() * zoom_x * mirror, -angle.sin() * zoom_y, uniform(2 * shift)], 1),
        torch.stack([angle.sin() * zoom_x * mirror, angle.cos() * zoom_y, uniform(2 * shift)], 1),
    ]
    return torch.stack(rows, 1)


def warp(images, affine):
    """Images (N, C, H, W) of floats mapped by ``affine`` (N, 2, 3), of the same shape.

    Pixels are interpolated; what is outside has the value of the nearest pixel at the border.
    """
    grid = F.affine_grid(affine, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def centre_crop(images, size):
    """The middle (N, 3, size, size) of images (N, 3, H, W) at least as large."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def middle(resize, size):
    """Of a ``PIL.Image.Image``, its short edge scaled, the middle: uint8 (3, size, size)."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])


def random_crop(size, scale, *, flip, randaugment=None):
    """Of a ``PIL.Image.Image``: a random part, uint8 (3, size, size).

    Args:
        scale: the smallest share of the area that is cropped.
        flip: whether half of the images are mirrored.
        randaugment: number of operations and magnitude (at most 30), or None.
    """
    steps = [v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if randaugment:
        # 31 bins: 30 is the strongest.
        steps.append(v2.RandAugment(*randaugment, 31, interpolation=InterpolationMode.BILINEAR))
    return v2.Compose([*steps, v2.PILToTensor()])


class Seeded:
    """``(image, seed)`` to what a transform makes of it with torch's random numbers of the seed.

    Those that dropout goes on with are left as they were.
    """

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            return self.transform(image)


def channel_moments(images):
    """Mean and deviation of every channel of uint8 (N, 3, H, W), of values from 0 to 1."""
    levels = np.arange(256) / 255
    counts = [torch.bincount(images[:, c].flatten().int(), minlength=256) for c in range(3)]
    shares = [(n / n.sum()).double().numpy() for n in counts]
    means = [float(s @ levels) for s in shares]
    deviations = [float(s @ (levels - m) ** 2) ** 0.5 for s, m in zip(shares, means, strict=True)]
    # Images of one colour have none.
    return tuple(means), tuple(d if d > 1e-3 else 1.0 for d in deviations)
