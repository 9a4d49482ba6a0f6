"""Differentiable augmentation of what the discriminator sees, real and generated images alike.

Source: Zhao, Liu, Lin, Zhu, Han, *Differentiable Augmentation for Data-Efficient GAN Training*
(arXiv 2006.10738), Section 3.2; ranges and order are those of the authors' DiffAugment_pytorch.py
(mit-han-lab/data-efficient-gans). The gradient of the generator goes through it. It depends on the
uniform numbers given alone.
"""

import torch
import torch.nn.functional as F

NUMBERS = 7  # uniform ones in [0, 1) that an image takes, whatever the policies are


def augmented(x, numbers, policies):
    """Images changed by policies, one after the other.

    Args:
        x: images ``(N, C, H, W)`` in [-1, 1].
        numbers: uniform in [0, 1), ``(N, NUMBERS)``.
        policies: names of :data:`POLICIES`.

    Returns:
        Images of the same shape; what has left its place is 0, the middle grey.
    """
    for name in policies:
        x = POLICIES[name](x, numbers)
    return x


def color(x, numbers):
    """Brightness by -0.5 to 0.5, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = numbers[:, :3, None, None, None].to(x.dtype).unbind(1)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    middle = x.mean((1, 2, 3), keepdim=True)
    return (x - middle) * (contrast + 0.5) + middle


def translation(x, numbers):
    """Moved by up to an eighth of the height and of the width, whole pixels."""
    n, _, height, width = x.shape
    rows, row_limit = _places(height, numbers[:, 3])
    columns, column_limit = _places(width, numbers[:, 4])
    padded = F.pad(x, (column_limit, column_limit, row_limit, row_limit)).permute(0, 2, 3, 1)
    images = torch.arange(n, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _places(size, numbers):
    """Where each row of the moved image is in the padded one, ``(N, size)``; the padding."""
    limit = int(size / 8 + 0.5)
    move = (numbers * (2 * limit + 1)).long()  # 0: the whole padding to the one side
    return torch.arange(size, device=numbers.device) + move[:, None], limit


def cutout(x, numbers):
    """A square of half the size is 0; its middle is anywhere, so that a part may be outside."""
    rows = _inside(x.shape[2], numbers[:, 5])[:, :, None]
    columns = _inside(x.shape[3], numbers[:, 6])[:, None, :]
    return x.masked_fill((rows & columns)[:, None], 0)


def _inside(size, numbers):
    """Whether a row is one of the square, ``(N, size)``."""
    side = int(size / 2 + 0.5)
    start = (numbers * (size + 1 - side % 2)).long()[:, None] - side // 2
    place = torch.arange(size, device=numbers.device)
    return (place >= start) & (place < start + side)


POLICIES = {"color": color, "translation": translation, "cutout": cutout}
